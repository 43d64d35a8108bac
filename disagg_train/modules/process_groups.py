"""The process groups of one module, made from its grid and handed over explicitly."""

from datetime import timedelta

from megatron.core.hyper_comm_grid import HyperCommGrid
from megatron.core.process_groups_config import ProcessGroupCollection

from disagg_train.topology.grid import Grid


def make_process_groups(grid: Grid, backend: str, deadline_s: float) -> ProcessGroupCollection:
    """Make every group that Megatron asks for, inside the default world of the process.

    All ranks of the world must call this, for every module in the same order.

    Args:
        grid: the module's ranks by axis; they are the whole world.
        backend: ``gloo`` or ``nccl``.
        deadline_s: timeout of the groups' collectives.
    """
    axes = list(grid.order)
    comm = HyperCommGrid(list(grid.degrees.values()), axes, backend=backend)
    timeout = timedelta(seconds=deadline_s)

    def make(*names: str) -> object:
        return comm.create_pg(list(names), timeout=timeout)

    tp, cp, dp, pp = make("tp"), make("cp"), make("dp"), make("pp")
    dp_cp, tp_pp, everyone = make("dp", "cp"), make("tp", "pp"), make(*axes)
    groups = {
        **{"tp": tp, "cp": cp, "dp": dp, "pp": pp, "tp_cp": make("tp", "cp")},
        **{"mp": tp_pp, "dp_cp": dp_cp, "intra_dp_cp": dp_cp, "intra_dist_opt": everyone},
        **{"ep": cp, "expt_tp": tp, "expt_dp": dp_cp, "tp_ep": tp, "tp_ep_pp": tp_pp},
        **{"embd": pp, "pos_embd": pp},
    }
    return ProcessGroupCollection(**groups)
