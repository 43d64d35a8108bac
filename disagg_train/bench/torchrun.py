"""The same ranks without Ray and without a driver, as torchrun would run them.

Every process makes the same step plans from the job file and runs its own op list; nobody
tells it what to do but "so many more steps".
"""

from collections.abc import Iterator
from itertools import islice, pairwise

from disagg_train.bench.processes import Processes
from disagg_train.config.job import JobConfig
from disagg_train.data.index import checked_sizes
from disagg_train.data.sampler import batches
from disagg_train.data.source import open_source
from disagg_train.driver.plans import job_schedules, training_plans
from disagg_train.engine.setup import RankSetup, Rendezvous
from disagg_train.planner.step_plan import StepPlan


def job_plans(job: JobConfig) -> Iterator[StepPlan]:
    """Return the job's step plans; the same wherever they are made."""
    sizes = checked_sizes(open_source(job), job, "train")
    return training_plans(job, batches(sizes, job.seed, job.train.global_batch))


class TorchrunRank:
    """One rank in a process of its own."""

    def __init__(self, setup: RankSetup) -> None:
        from disagg_train.engine.rank import Rank

        self._plans = job_plans(setup.job)
        self._rank = Rank(setup)

    def run(self, count: int) -> list[float]:
        """Run the next ``count`` steps; return their losses, to be held against Ray's."""
        plans = [*islice(self._plans, count), None]
        reports = [self._rank.train(plan, upcoming) for plan, upcoming in pairwise(plans) if plan]
        return [report.loss_sum for report in reports]

    def close(self) -> None:
        """Leave all groups."""
        self._rank.close()


def start_torchrun(job: JobConfig, rendezvous: Rendezvous) -> Processes[RankSetup, list[float]]:
    """Start every rank of the job as a plain process and build its modules.

    Raises:
        RankError: a rank died, hung or raised.
    """
    training, evaluation = job_schedules(job)
    members = [(name, rank) for name, group in job.groups.items() for rank in range(group.ranks)]
    setups = [
        RankSetup(job, rendezvous, name, rank, training.ops[place], evaluation.ops[place])
        for place, (name, rank) in enumerate(members)
    ]
    return Processes(TorchrunRank, setups, job.deadlines.setup_s)
