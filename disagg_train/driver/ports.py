"""What the driver asks of a group of ranks. Ray actors implement it; so can anything else."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

from disagg_train.metrics.records import BadSample, RankReport, SnapshotOrder, Stored
from disagg_train.planner.step_plan import StepPlan


class Group(Protocol):
    """Ranks that host some modules. Calls return at once; futures hold one report per rank.

    A future fails with ``RankError`` where a rank died, hung or raised.
    """

    @property
    def name(self) -> str:
        """Name of the group in the job file."""

    def train(self, plan: StepPlan, upcoming: StepPlan | None) -> "Future[Sequence[RankReport]]":
        """Start a training step; ``upcoming`` is the one after it, to be loaded meanwhile."""

    def probe(self, plan: StepPlan) -> "Future[Sequence[Sequence[BadSample]]]":
        """Start loading the samples of a coming step, which is not committed yet.

        Returns:
            Per rank, the samples that it cannot use.
        """

    def evaluate(self, plan: StepPlan) -> "Future[Sequence[RankReport]]":
        """Start an evaluation."""

    def snapshot(self, order: SnapshotOrder) -> "Future[Sequence[None]]":
        """Copy every rank's state, after the steps handed out so far and before the next one."""

    def stored(self, order: SnapshotOrder) -> "Future[Sequence[Stored]]":
        """Return, once every rank's copy of that order is where it was to go, how that went."""
