"""The planner: the best layout of a job for its data and GPUs, and how sure that is. Pure.

Candidates are ranked by a rough estimate (``search``); those at the top are simulated on real
batches (``finalists``), the best of these on more of them. The choice depends on the data through
the ratio of the encoders' work to the LLM's: the margin is how far that ratio may move before
another finalist is quicker, and ``b_min`` how many samples tell the ratio that well (Entrain,
arXiv 2605.27918).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, inf

from disagg_train.config.job import JobConfig
from disagg_train.errors import PlanError
from disagg_train.planner.candidates import Placement, Pool
from disagg_train.planner.estimate import Staged
from disagg_train.planner.finalists import Field, Finalist, quickest
from disagg_train.planner.module_options import CostsOf, ModuleOptions
from disagg_train.planner.search import Ranked, Search
from disagg_train.planner.step_plan import SampleSize
from disagg_train.planner.workload import Batches, CostRatio, Workload, cost_ratio

_PER_PLACEMENT, _PER_STRETCH, _IN_THE_END = 12, 3, 4
"""Finalists: of each placement, of each placement for other ratios, and on all batches."""
_SEARCHED = (0.25, 0.5, 2.0, 4.0)
_OCTAVES = (0.5, 1.0, 1.5, 2.0)
"""How far the encoders' costs are stretched, in powers of two, to find where the margin ends."""
_HALVINGS = 3
"""Of the half octave in which it ends: to 4.4 %."""
_CLEARLY = 0.01
"""Part of a step's seconds by which another finalist has to be quicker to end the margin."""
_SIGMAS = 1.96


@dataclass(frozen=True)
class Margin:
    """How far the encoders' work may move, in times of what it is, before the choice changes.

    Args:
        low: the largest factor below 1 with which another finalist is found clearly quicker; 0
            where none is.
        high: the smallest such factor above 1; infinite where there is none.
        below: that finalist.
        above: that finalist.
    """

    low: float
    high: float
    below: Finalist | None
    above: Finalist | None

    @property
    def width(self) -> float:
        """The nearer end's distance from 1."""
        return min(1.0 - self.low, self.high - 1.0)


@dataclass(frozen=True)
class Plan:
    """The planner's answer.

    Args:
        batches: that finalists were compared on.
        best_of: the quickest finalist of every placement that fits.
        homogeneous: the quickest whose encoders are cut as the LLM is; None where none fits.
        contenders: finalists that the choice is among where the data are others: the best of all
            placements, and what is quick with encoders that cost more or less.
        margin: of the choice.
        ratio: of the data.
        num_ranked: candidates that were ranked.
        num_simulated: candidates that were simulated.
    """

    batches: Batches
    best_of: dict[Placement, Finalist]
    homogeneous: Finalist | None
    contenders: tuple[Finalist, ...]
    margin: Margin
    ratio: CostRatio
    num_ranked: int
    num_simulated: int

    @property
    def best(self) -> Finalist:
        """The choice."""
        return quickest(self.best_of.values(), self.batches)

    @property
    def runner_up(self) -> Finalist | None:
        """The best finalist of another placement."""
        others = [f for f in self.best_of.values() if f is not self.best]
        return quickest(others, self.batches) if others else None

    @property
    def best_is_homogeneous(self) -> bool:
        """Whether the choice cuts encoders as the LLM."""
        same = self.homogeneous
        return same is not None and same.candidate.layout == self.best.candidate.layout

    @property
    def b_min(self) -> int | None:
        """Samples whose ratio lies inside the margin in 95 of 100 draws.

        None where no number does: the margin has no width.
        """
        width = self.margin.width
        if not width:
            return None
        return max(1, ceil((_SIGMAS * self.ratio.variation / width) ** 2))


def make_plan(
    job: JobConfig,
    pools: Sequence[Pool],
    costs_of: CostsOf,
    staged: Staged,
    batches: Batches,
    samples: Sequence[SampleSize],
) -> Plan:
    """Plan a job.

    Args:
        job: the job; its layout is one candidate among others.
        pools: GPUs that it may use; all are used.
        costs_of: says what modules cost.
        staged: builds op lists.
        batches: samples of a few steps.
        samples: that the ratio of encoder to LLM work is taken from.

    Raises:
        PlanError: nothing fits.
    """
    search = Search(job, pools, ModuleOptions(job, costs_of, Workload.of(job, batches)))
    field = Field(job, pools, costs_of, staged)
    ranked = search.ranked()
    best_of = {
        placement: best
        for placement, found in ranked.items()
        if (best := _best(field, found, batches)) is not None
    }
    homogeneous = _best(field, search.homogeneous(), batches)
    if homogeneous is not None:
        placement = homogeneous.candidate.placement
        best_of[placement] = quickest([best_of.get(placement, homogeneous), homogeneous], batches)
    if not best_of:
        raise PlanError(_nothing_fits(pools))
    best = quickest(best_of.values(), batches)
    contenders = *best_of.values(), *_for_other_ratios(search, field, batches[:1])
    return Plan(
        batches=batches,
        best_of=best_of,
        homogeneous=homogeneous,
        contenders=contenders,
        margin=_margin(best, contenders, batches[:1]),
        ratio=cost_ratio(best.job, best.costs.modules, samples),
        num_ranked=sum(map(len, ranked.values())),
        num_simulated=field.num_simulated,
    )


def _best(field: Field, ranked: Sequence[Ranked], batches: Batches) -> Finalist | None:
    """Return the quickest on all batches, with samples put off where that helps."""
    first = batches[:1]
    finalists = field.fitting((each.candidate for each in ranked), first, _PER_PLACEMENT)
    if not finalists:
        return None
    top = sorted(finalists, key=lambda each: each.estimate(first).step_s)[:_IN_THE_END]
    putting_off = (replace(each.candidate, span=max(each.candidate.span, 1)) for each in top)
    return quickest([*top, *field.fitting(putting_off, first, len(top))], batches)


def _for_other_ratios(search: Search, field: Field, batches: Batches) -> list[Finalist]:
    """Return what is quick where encoders cost more or less than they do."""
    candidates = {
        each.candidate.layout: each.candidate
        for stretch in _SEARCHED
        for found in search.ranked(stretch, _PER_STRETCH).values()
        for each in found
    }
    return field.fitting(candidates.values(), batches, len(candidates))


def _margin(best: Finalist, rivals: Sequence[Finalist], batches: Batches) -> Margin:
    low, under = _first_beaten(best, rivals, batches, -1)
    high, over = _first_beaten(best, rivals, batches, 1)
    return Margin(low or 0.0, high or inf, under, over)


def _first_beaten(
    best: Finalist, rivals: Sequence[Finalist], batches: Batches, way: int
) -> tuple[float | None, Finalist | None]:
    """Return the first factor, up or down, with which a rival is clearly quicker, and the rival."""
    inside = 0.0
    for outside in _OCTAVES:
        if (found := _beaten(best, rivals, batches, 2 ** (way * outside))) is not None:
            break
        inside = outside
    else:
        return None, None
    for _ in range(_HALVINGS):
        between = (inside + outside) / 2
        rival = _beaten(best, rivals, batches, 2 ** (way * between))
        if rival is None:
            inside = between
        else:
            outside, found = between, rival
    return 2 ** (way * outside), found


def _beaten(
    best: Finalist, rivals: Sequence[Finalist], batches: Batches, stretch: float
) -> Finalist | None:
    """Return the rival that is clearly quicker, if there is one."""
    rival = quickest(rivals, batches, stretch)
    limit_s = (1 - _CLEARLY) * best.estimate(batches, stretch).step_s
    return rival if rival.estimate(batches, stretch).step_s < limit_s else None


def _nothing_fits(pools: Sequence[Pool]) -> str:
    listed = ", ".join(
        f"{pool.count} {pool.kind or 'GPUs'} with {pool.memory_bytes / 2**30:.0f} GiB to use"
        for pool in pools
    )
    return f"no layout fits {listed}; take more or larger GPUs, or a smaller model or batch"
