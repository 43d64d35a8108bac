"""A small LLM on two ranks, whose state is stored and taken over in turns."""

import pickle
from pathlib import Path
from typing import Any

from disagg_train.metrics.records import SnapshotOrder, Stored
from disagg_train.topology.grid import Grid
from tests.unit.engine.control_ranks import LR, _accumulate, _job, _stage, _weights
from tests.unit.modules.language_ranks import DEADLINE_S, whole_norm, world

NUM_RANKS = 2
_GRIDS = {"dp2": {"dp": 2}, "tp2": {"tp": 2, "sp": True}, "one": {}}


def watch_state(rank: int, folder: Path) -> None:
    """Be a rank of every experiment; leave what it saw in ``folder``."""
    import torch

    from disagg_train.modules import cpu

    torch.set_num_threads(1)
    cpu.install()
    seen: dict[str, Any] = {}
    for name, precision, moves in (
        ("same ranks", "fp16", ["dp2", "dp2"]),
        ("other layout", "bf16", ["dp2", "tp2"]),
        ("fewer ranks", "bf16", ["tp2", "one"]),
    ):
        for number, move in enumerate(moves):
            grid = Grid(**{axis: _GRIDS[move].get(axis, 1) for axis in ("tp", "dp")})
            if rank < grid.size:
                with world(rank, grid.size, folder / f"{name.replace(' ', '-')}{number}"):
                    before = folder / name.replace(" ", "_")
                    take_over = number > 0
                    seen[name, number] = _Experiment(rank, grid, precision, move).run(
                        before, take_over
                    )
    with world(rank, NUM_RANKS, folder / "first"):
        seen["before any step", 0] = _before_any_step(rank, folder / "before_any_step")
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(seen))


class _Experiment:
    """One rank's stage with its state.

    Args:
        rank: of the world.
        grid: of the module.
        precision: of the job.
        degrees: name of the module's.
    """

    def __init__(self, rank: int, grid: Grid, precision: str, degrees: str) -> None:
        import torch
        import torch.distributed as dist

        from disagg_train.config.job import LossScaleConfig
        from disagg_train.engine.loss_scale import LossScale
        from disagg_train.engine.snapshot import Snapshots
        from disagg_train.engine.state import RankState

        torch.manual_seed(rank)
        frozen = {"freeze": ["gpt.embedding.*"]}
        self.grid, self.stage = grid, _stage(_job(precision, _GRIDS[degrees], **frozen), grid)
        self.scale = LossScale(LossScaleConfig()) if precision == "fp16" else None
        self.state = RankState({"language": self.stage}, "language", rank, self.scale)
        self.snapshots = Snapshots(self.state, dist.group.WORLD, DEADLINE_S)

    def run(self, folder: Path, take_over: bool) -> dict[str, Any]:
        """Take a state over or train for one; train on; return what comes of it."""
        import torch

        from disagg_train.checkpoint.sharded import CheckpointSource

        seen: dict[str, Any] = {}
        if take_over:
            self.state.restore(CheckpointSource(str(folder), 2))
        else:
            losses = [self.step(), self.step()]
            if self.scale is not None:
                self.scale.update(skipped=True)
            seen["stored"] = self.stored(SnapshotOrder(2, folder=str(folder)))
            assert losses[0] != losses[1]
        seen["scale"] = None if self.scale is None else self.scale.state
        seen["random"] = torch.rand(3).tolist()
        seen["weights"] = _weights(self.stage)
        seen["loss"] = self.step()
        return seen

    def step(self) -> float:
        loss = _accumulate(self.stage, self.grid, 64.0 if self.scale else None)
        self.stage.optimizer.step(LR, whole_norm([self.stage]))
        return loss

    def stored(self, order: SnapshotOrder) -> Stored:
        self.snapshots.take(order, None)
        return self.snapshots.stored(order)


def _before_any_step(rank: int, folder: Path) -> bool:
    """Take over, after a step, a state from before any; return whether all is as at first."""
    from disagg_train.checkpoint.sharded import CheckpointSource

    one = _Experiment(rank, Grid(dp=2), "bf16", "dp2")
    one.stored(SnapshotOrder(0, folder=str(folder)))
    losses = [one.step(), one.step()]
    other = _Experiment(rank, Grid(dp=2), "bf16", "dp2")
    other.state.restore(CheckpointSource(str(folder), 0))
    return losses == [other.step(), other.step()]
