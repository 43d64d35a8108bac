"""The process groups of one module, made from its grid and handed over explicitly."""

from collections.abc import Mapping
from datetime import timedelta

from megatron.core.hyper_comm_grid import HyperCommGrid
from megatron.core.process_groups_config import ProcessGroupCollection
from torch.distributed import ProcessGroup

from disagg_train.topology.grid import AXES, Grid


def make_process_groups(
    grid: Grid, ep: int, backend: str, deadline_s: float
) -> ProcessGroupCollection:
    """Make every group that Megatron asks for, inside the default world of the process.

    All ranks of the world must call this, for every module in the same order. Experts are cut
    over tp like every other matrix, so ``expt_tp`` is ``tp``.

    Args:
        grid: the module's ranks by axis; they are the whole world.
        ep: expert-parallel degree.
        backend: ``gloo`` or ``nccl``.
        deadline_s: timeout of the groups' collectives.
    """
    make = _Maker(grid.degrees, backend, deadline_s)
    tp, cp, dp, pp = make("tp"), make("cp"), make("dp"), make("pp")
    dp_cp, tp_pp, everyone = make("dp", "cp"), make("tp", "pp"), make(*grid.order)
    groups = {
        **{"tp": tp, "cp": cp, "dp": dp, "pp": pp, "tp_cp": make("tp", "cp")},
        **{"mp": tp_pp, "dp_cp": dp_cp, "intra_dp_cp": dp_cp, "intra_dist_opt": everyone},
        **{"embd": None, "pos_embd": None, "expt_tp": tp},  # tied copies meet in pp
        **{"expt_dp": dp_cp, "intra_expt_dp": dp_cp, "tp_ep": tp, "tp_ep_pp": tp_pp},
    }
    return ProcessGroupCollection(**groups | _expert_groups(grid, ep, backend, deadline_s))


def _expert_groups(grid: Grid, ep: int, backend: str, deadline_s: float) -> dict[str, ProcessGroup]:
    """Return the groups of a module's experts that are not those of its other weights.

    The lanes of a stage, numbered ``cp + cp_size * dp``, are cut into neighbours that hold
    different experts (ep) and replicas that hold the same ones (expt_dp).
    """
    assert ep == 1 or grid.order == AXES, f"ep={ep} counts lanes in the order {AXES}"
    degrees = {"tp": grid.tp, "ep": ep, "dp": grid.cp * grid.dp // ep, "pp": grid.pp}
    make = _Maker(degrees, backend, deadline_s)
    if ep == 1:
        return {"ep": make("ep")}
    dp = make("dp")
    return {
        **{"ep": make("ep"), "expt_dp": dp, "intra_expt_dp": dp},
        **{"tp_ep": make("tp", "ep"), "tp_ep_pp": make("tp", "ep", "pp")},
    }


class _Maker:
    """Makes the groups along some axes; axes that make the same ranks share one group.

    Every group costs threads and connections (on GPUs memory), and most degrees are 1.

    Args:
        degrees: degree of each axis, the fastest first.
        backend: ``gloo`` or ``nccl``.
        deadline_s: timeout of the groups' collectives.
    """

    def __init__(self, degrees: Mapping[str, int], backend: str, deadline_s: float) -> None:
        self._degrees, self._timeout = degrees, timedelta(seconds=deadline_s)
        self._grid = HyperCommGrid(list(degrees.values()), list(degrees), backend=backend)
        self._made: dict[tuple[str, ...], ProcessGroup] = {}

    def __call__(self, *axes: str) -> ProcessGroup:
        """Return this rank's group along ``axes``."""
        wide = tuple(axis for axis in self._degrees if axis in axes and self._degrees[axis] > 1)
        if wide not in self._made:
            names = wide or axes[:1]  # of a degree of 1: this rank alone
            self._made[wide] = self._grid.create_pg(list(names), timeout=self._timeout)
        return self._made[wide]
