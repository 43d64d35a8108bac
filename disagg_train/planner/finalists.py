"""The candidates that are simulated, and which of them is best. Pure."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

from disagg_train.config.job import JobConfig
from disagg_train.planner.candidates import Candidate, Pool
from disagg_train.planner.estimate import Estimate, Estimator, Staged
from disagg_train.planner.module_options import CostsOf
from disagg_train.planner.step_costs import JobCosts
from disagg_train.planner.workload import Batches

_ALIKE = 0.005
"""Part of a step's seconds within which two candidates count as equally quick; the simpler one
is then preferred."""


class Finalist:
    """A candidate that is simulated.

    Args:
        candidate: how the job is laid out.
        job: the job, laid out so.
        costs: of its modules.
        staged: builds its op lists.
    """

    def __init__(
        self, candidate: Candidate, job: JobConfig, costs: JobCosts, staged: Staged
    ) -> None:
        self.candidate, self.job, self.costs = candidate, job, costs
        self._estimator = Estimator(job, staged, costs)
        self._known: dict[tuple[float, ...], Estimate] = {}

    def estimate(self, batches: Batches, stretch: float = 1.0) -> Estimate:
        """Return what a step takes.

        Args:
            batches: samples of a step each; a batch object that was seen before is not
                simulated again.
            stretch: encoders are taken to cost so many times as much; samples stay where the
                real costs put them.
        """
        key = stretch, *map(id, batches)
        if key not in self._known:
            self._known[key] = self._estimator.estimate(batches, self._stretched(stretch))
        return self._known[key]

    def _stretched(self, stretch: float) -> JobCosts:
        if stretch == 1.0:
            return self.costs
        encoders = {n: self.costs.modules[n].stretched(stretch) for n in self.job.encoders}
        return replace(self.costs, modules={**self.costs.modules, **encoders})

    @property
    def simplicity(self) -> tuple[int, ...]:
        """Smaller for fewer groups, less model parallelism, and plainer schedules."""
        candidate = self.candidate
        cut = sum(shape.num_ranks * shape.vpp for shape in candidate.shapes.values())
        recomputing = sum(shape.recompute != "none" for shape in candidate.shapes.values())
        plain = candidate.schedule != "1f1b", candidate.window < candidate.microbatches
        return len(candidate.teams), cut, recomputing, *map(int, plain), candidate.span


class Field:
    """Makes finalists of one job.

    Args:
        job: the job.
        pools: GPUs that it may use.
        costs_of: says what modules cost.
        staged: builds op lists.
    """

    def __init__(
        self, job: JobConfig, pools: Sequence[Pool], costs_of: CostsOf, staged: Staged
    ) -> None:
        self._job, self._costs_of, self._staged = job, costs_of, staged
        self._memory = {pool.kind: pool.memory_bytes for pool in pools}
        self._made: dict[Hashable, Finalist | None] = {}

    @property
    def num_simulated(self) -> int:
        """Candidates that were made finalists."""
        return sum(each is not None for each in self._made.values())

    def finalist(self, candidate: Candidate) -> Finalist | None:
        """Return a candidate to be simulated, the same one each time.

        None where it breaks one of the job's rules.
        """
        if candidate.key not in self._made:
            self._made[candidate.key] = self._make(candidate)
        return self._made[candidate.key]

    def _make(self, candidate: Candidate) -> Finalist | None:
        job = candidate.job(self._job)
        if job is None:
            return None
        return Finalist(candidate, job, self._costs_of(job), self._staged)

    def fits(self, finalist: Finalist, batches: Batches) -> bool:
        """Return whether every group has memory enough."""
        held = finalist.estimate(batches).num_bytes
        return all(
            held[team.name] <= self._memory[team.gpu_kind] for team in finalist.candidate.teams
        )

    def fitting(
        self, candidates: Iterable[Candidate], batches: Batches, most: int
    ) -> list[Finalist]:
        """Return the first candidates that keep to all rules and fit.

        Args:
            candidates: in the order of preference.
            batches: that they have to fit with.
            most: how many.
        """
        found: list[Finalist] = []
        for candidate in candidates:
            if len(found) == most:
                break
            made = self.finalist(candidate)
            if made is not None and self.fits(made, batches):
                found.append(made)
        return found


def quickest(finalists: Iterable[Finalist], batches: Batches, stretch: float = 1.0) -> Finalist:
    """Return the finalist with the shortest step, the simplest one of those that are alike."""
    steps_s = {each: each.estimate(batches, stretch).step_s for each in finalists}
    limit_s = min(steps_s.values()) * (1 + _ALIKE)
    alike = [each for each, step_s in steps_s.items() if step_s <= limit_s]
    return min(alike, key=lambda each: each.simplicity)
