"""What a rank is told before it builds anything, as plain data.

Actors make these, torchrun makes these; what follows is the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch.distributed.checkpoint import StorageReader

from disagg_train.config.job import JobConfig
from disagg_train.schedule.ops import Op


@dataclass(frozen=True)
class Rendezvous:
    """Where the job's store listens.

    Args:
        host: address of the store, hosted where no rank's death takes it down.
        port: its port.
        epoch: grows whenever communicators are made anew; part of every group's name.
    """

    host: str
    port: int
    epoch: int = 0


@dataclass(frozen=True)
class RankSetup:
    """All that a rank is told before it builds.

    Args:
        job: the job.
        rendezvous: where the ranks meet.
        group: the rank's actor group.
        rank: its number inside the group.
        training_ops: its op list of a training step.
        evaluation_ops: its op list of an evaluation.
        log: file that takes the output of its process; None leaves that where it is.
    """

    job: JobConfig
    rendezvous: Rendezvous
    group: str
    rank: int
    training_ops: Sequence[Op]
    evaluation_ops: Sequence[Op]
    log: str | None = None


class StateSource(Protocol):
    """Where a rank finds the state that it begins with: a checkpoint, or the vaults."""

    @property
    def steps_done(self) -> int:
        """Training steps that the state has behind it."""

    def reader(self, module: str) -> StorageReader:
        """Return a reader of a module's state, whatever layout it was saved in."""
