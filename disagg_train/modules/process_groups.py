"""The process groups of one module, made from its grid and handed over explicitly."""

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
    axes = list(grid.order)
    comm = HyperCommGrid(list(grid.degrees.values()), axes, backend=backend)
    timeout = timedelta(seconds=deadline_s)

    def make(*names: str) -> ProcessGroup:
        return comm.create_pg(list(names), timeout=timeout)

    tp, cp, dp, pp = make("tp"), make("cp"), make("dp"), make("pp")
    dp_cp, tp_pp, everyone = make("dp", "cp"), make("tp", "pp"), make(*axes)
    groups = {
        **{"tp": tp, "cp": cp, "dp": dp, "pp": pp, "tp_cp": make("tp", "cp")},
        **{"mp": tp_pp, "dp_cp": dp_cp, "intra_dp_cp": dp_cp, "intra_dist_opt": everyone},
        **{"embd": None, "pos_embd": None, "expt_tp": tp},  # embeddings are not tied
        **{"expt_dp": dp_cp, "intra_expt_dp": dp_cp, "tp_ep": tp, "tp_ep_pp": tp_pp},
    }
    return ProcessGroupCollection(**groups | _expert_groups(grid, ep, backend, timeout))


def _expert_groups(
    grid: Grid, ep: int, backend: str, timeout: timedelta
) -> dict[str, ProcessGroup]:
    """Return the groups of a module's experts that are not those of its other weights.

    The lanes of a stage, numbered ``cp + cp_size * dp``, are cut into neighbours that hold
    different experts (ep) and replicas that hold the same ones (expt_dp).
    """
    assert ep == 1 or grid.order == AXES, f"ep={ep} counts lanes in the order {AXES}"
    degrees = {"tp": grid.tp, "ep": ep, "dp": grid.cp * grid.dp // ep, "pp": grid.pp}
    comm = HyperCommGrid(list(degrees.values()), list(degrees), backend=backend)

    def make(*names: str) -> ProcessGroup:
        return comm.create_pg(list(names), timeout=timeout)

    if ep == 1:
        return {"ep": make("ep")}
    dp = make("dp")
    return {
        **{"ep": make("ep"), "expt_dp": dp, "intra_expt_dp": dp},
        **{"tp_ep": make("tp", "ep"), "tp_ep_pp": make("tp", "ep", "pp")},
    }
