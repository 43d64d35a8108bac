"""The same ranks without Ray and without a driver, as torchrun would run them.

Every process makes the same step plans from the job file and runs its own part of them;
nobody tells it what to do but "so many more steps".
"""

from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from time import perf_counter
from typing import Protocol

from disagg_train.bench.processes import Processes
from disagg_train.config.job import JobConfig
from disagg_train.data.index import checked_sizes
from disagg_train.data.source import open_source
from disagg_train.driver.plans import training_batches, training_plans
from disagg_train.driver.schedules import job_schedules
from disagg_train.engine.setup import RankSetup, Rendezvous
from disagg_train.metrics.records import RankReport
from disagg_train.planner.step_plan import StepPlan


def job_plans(job: JobConfig) -> Iterator[StepPlan]:
    """Return the job's step plans; the same wherever they are made."""
    sizes = checked_sizes(open_source(job), job, "train")
    return training_plans(job, training_batches(job, sizes))


class TrainsPlans(Protocol):
    """A rank that trains one plan after the other: ours, or one that Megatron drives."""

    def train(self, plan: StepPlan, upcoming: StepPlan | None) -> RankReport:
        """Run one training step; load the next one's samples meanwhile."""

    def close(self) -> None:
        """Leave all groups."""


class PlainRank:
    """One rank in a process of its own.

    Args:
        job: the job.
        rank: trains its plans.
    """

    def __init__(self, job: JobConfig, rank: TrainsPlans) -> None:
        self._plans, self._rank = job_plans(job), rank

    def run(self, count: int) -> list[float]:
        """Run the next ``count`` steps; return their losses, to be held against others'."""
        plans = [*islice(self._plans, count), None]
        reports = [self._rank.train(plan, upcoming) for plan, upcoming in pairwise(plans) if plan]
        return [report.loss_sum for report in reports]

    def close(self) -> None:
        """Leave all groups."""
        self._rank.close()


MakeRank = Callable[[RankSetup], PlainRank]
Ranks = Processes[RankSetup, list[float]]


def make_ours(setup: RankSetup) -> PlainRank:
    """Build one of our ranks, which runs its op list."""
    from disagg_train.engine.rank import Rank

    return PlainRank(setup.job, Rank(setup))


def make_megatron(setup: RankSetup) -> PlainRank:
    """Build a rank that Megatron's own schedule drives."""
    from disagg_train.bench.megatron_pipeline import MegatronRank

    return PlainRank(setup.job, MegatronRank(setup))


def start_torchrun(job: JobConfig, rendezvous: Rendezvous, make: MakeRank = make_ours) -> Ranks:
    """Start every rank of the job as a plain process and build its modules.

    Args:
        job: the job.
        rendezvous: where its ranks meet, and nobody else's.
        make: builds a rank inside its process.

    Raises:
        RankError: a rank died, hung or raised.
    """
    training, evaluation = job_schedules(job)
    members = [(name, rank) for name, group in job.groups.items() for rank in range(group.ranks)]
    setups = [
        RankSetup(job, rendezvous, name, rank, training.ops[place], evaluation.ops[place])
        for place, (name, rank) in enumerate(members)
    ]
    return Processes(make, setups, job.deadlines.setup_s)


class PlainContestant:
    """Ranks in plain processes, as a contestant.

    Args:
        name: in results and errors.
        ranks: the processes; the last one knows the losses, as it has the LLM's last stage.
    """

    def __init__(self, name: str, ranks: Ranks) -> None:
        self.name, self.losses = name, list[float]()
        self._ranks = ranks

    def run(self, count: int) -> float:
        """Train the next ``count`` steps; return seconds per step."""
        begin_s = perf_counter()
        *_, losses = self._ranks.run(count)
        elapsed_s = perf_counter() - begin_s
        self.losses += losses
        return elapsed_s / count
