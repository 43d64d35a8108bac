"""The shapes of each module of a job, with what they would take. Pure."""

from collections.abc import Callable
from functools import cache

from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.planner.candidates import Candidate, Pool, Team
from disagg_train.planner.gathering import run_of
from disagg_train.planner.memory import module_state_bytes, passing_bytes_per_token
from disagg_train.planner.options import Option, option, undominated
from disagg_train.planner.sample_costs import ModuleCost
from disagg_train.planner.shapes import Shape, shapes
from disagg_train.planner.step_costs import JobCosts
from disagg_train.planner.workload import Workload

CostsOf = Callable[[JobConfig], JobCosts]
"""Says what the modules of a job cost in their layouts."""


class ModuleOptions:
    """What every module could be like on so many ranks.

    Args:
        job: the job.
        costs_of: says what modules cost.
        workload: what the data ask.
    """

    def __init__(self, job: JobConfig, costs_of: CostsOf, workload: Workload) -> None:
        self._job, self._costs_of, self._workload = job, costs_of, workload
        self.of = cache(self._of)
        """Return the undominated options of a module: its name, its pool, ranks, microbatches,
        and whether it may take the samples of several microbatches at once."""
        self._cost = cache(self._find_cost)
        self._state = cache(self._find_state)
        self._passing = cache(self._find_passing)

    def work_s(self, name: str, pool: Pool) -> float:
        """Return about how many seconds of one rank a module takes per step."""
        module = self._job.modules[name]
        smallest = min(shapes(module, pool.count, pool.ranks_per_node), key=_ranks_of)
        return self._made(name, pool, smallest, 1, 1).busy_s * smallest.num_ranks

    def _of(
        self, name: str, pool: Pool, ranks: int, microbatches: int, gathers: bool
    ) -> list[Option]:
        fitting = (
            shape
            for shape in shapes(self._job.modules[name], ranks, pool.ranks_per_node)
            if ranks % shape.num_ranks == 0
        )
        made = (
            self.option(name, pool, shape, ranks // shape.num_ranks, microbatches, run)
            for shape in fitting
            for run in self.runs(ranks // shape.num_ranks, microbatches, gathers)
        )
        return undominated(each for each in made if each is not None)

    def runs(self, dp: int, microbatches: int, gathers: bool) -> set[int]:
        """Return the runs of microbatches to try.

        Args:
            dp: replicas of an encoder.
            microbatches: of a step.
            gathers: whether it may take the samples of several microbatches at once.
        """
        per_microbatch = self._workload.samples_per_step / microbatches
        return {1, run_of(dp, per_microbatch, microbatches)} if gathers else {1}

    def option(
        self, name: str, pool: Pool, shape: Shape, dp: int, microbatches: int, run: int = 1
    ) -> Option | None:
        """Return a shape's option; None where it breaks a rule or does not fit the memory."""
        num_samples = self._workload.samples_per_step
        if name == LANGUAGE and dp * microbatches > num_samples:
            return None
        if shape.vpp > 1 and microbatches % shape.pp or dp * shape.cp % shape.ep:
            return None
        made = self._made(name, pool, shape, dp, microbatches, run)
        held = made.state_bytes + made.passing_bytes + made.activation_bytes
        return made if held <= pool.memory_bytes else None

    def _made(
        self, name: str, pool: Pool, shape: Shape, dp: int, microbatches: int, run: int = 1
    ) -> Option:
        return option(
            shape,
            dp,
            self._cost(name, shape, pool),
            self._workload.loads[name],
            self._workload.samples_per_step,
            microbatches,
            self._state(name, shape, dp),
            self._passing(name, shape),
            run,
        )

    def _find_cost(self, name: str, shape: Shape, pool: Pool) -> ModuleCost:
        """Return what a module costs; gradient syncs as if there were two replicas."""
        return self._costs_of(self._alone(name, shape, 2, pool)).modules[name]

    def _find_state(self, name: str, shape: Shape, dp: int) -> tuple[float, ...]:
        return module_state_bytes(self._alone(name, shape, dp, None), name)

    def _find_passing(self, name: str, shape: Shape) -> tuple[float, ...]:
        return passing_bytes_per_token(self._alone(name, shape, 1, None))[name]

    def _alone(self, name: str, shape: Shape, dp: int, pool: Pool | None) -> JobConfig:
        """Return a job in which one module has a shape, and the others have one rank each."""
        own = {other: Shape() for other in self._job.modules} | {name: shape}
        ranks = dict.fromkeys(self._job.modules, 1) | {name: shape.num_ranks * dp}
        kind = pool.kind if pool else None
        teams = tuple(Team((other,), ranks[other], kind) for other in self._job.modules)
        return Candidate(teams, own, 1, 1).unchecked(self._job)


def _ranks_of(shape: Shape) -> int:
    return shape.num_ranks
