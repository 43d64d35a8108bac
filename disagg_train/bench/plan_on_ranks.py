"""``disagg-train bench plan --measured``: the planner's choice among all layouts, all measured.

Every rank has a part of a core to itself. A layout is every way to group the modules, to give the
groups ranks and to cut the modules; it is run with the number of microbatches and the schedule
that the simulator likes best for it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from statistics import median
from typing import Any

from actors.pool import ActorPool
from disagg_train.bench.alternation import Paired, measure, num_steps
from disagg_train.bench.every_layout import every_candidate
from disagg_train.bench.jobs import drawn_job, with_steps
from disagg_train.bench.machine import commit, hardware
from disagg_train.bench.small_cores import CORES_PER_RANK, on_small_cores, profiled
from disagg_train.bench.spreads import ENCODER
from disagg_train.bench.statistics import rank_correlation
from disagg_train.bench.torchrun import job_plans
from disagg_train.bench.under_ray import RayContestant, started_pool
from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.driver import loop
from disagg_train.driver.planning import layout_of, staged
from disagg_train.planner.candidates import Candidate, Pool, Team
from disagg_train.planner.finalists import Field, Finalist
from disagg_train.planner.plan import make_plan
from disagg_train.planner.shapes import Shape
from disagg_train.planner.trials import parse_degrees, trial_jobs
from disagg_train.planner.workload import Batches

RANKS = 4
_SHAPES = ("tp=1,2", "pp=2", "cp=2,4", "tp=2:pp=2", "tp=2:cp=2")
_DEGREES = (
    *(f"{ENCODER}:{shape}" for shape in _SHAPES),
    *(f"{LANGUAGE}:{shape}" for shape in (*_SHAPES, "cp=2:pp=2")),
)
"""Measured on all ranks; what passes between groups is measured in the job's own layout."""
_WARM_UP, _STEPS, _BATCHES = 1, 4, 4


@dataclass(frozen=True)
class Layout:
    """One layout.

    Args:
        layout: for people.
        simulated_ms: a step.
        measured_ms: a step, the median.
    """

    layout: str
    simulated_ms: float
    measured_ms: float


OnLayout = Callable[[Layout], None]


@dataclass(frozen=True)
class MeasuredPlan:
    """One job.

    Args:
        job: its name.
        chosen: what the planner chose.
        best: what was measured to be quickest.
        chosen_over_best: median of the chosen layout's steps over those of the best one, in
            the pass over all layouts.
        rank_correlation: Spearman's, of simulated and measured.
        again: the chosen against the best, in alternation; None where they are the same.
        layouts: all, the quickest first.
    """

    job: str
    chosen: Layout
    best: Layout
    chosen_over_best: float
    rank_correlation: float
    again: Paired | None
    layouts: tuple[Layout, ...]


def planned_jobs() -> list[JobConfig]:
    """Return jobs with a light encoder, a heavy one, and one about as heavy as the LLM."""
    layers = {"num_layers": 2, "num_attention_heads": 2}
    return [
        drawn_job("light-encoder", layers, (32, 160), {"spread": "instruction", "divide": 16}),
        drawn_job("heavy-encoder", layers, (160, 64), {"spread": "chart-to-table", "divide": 16}),
        drawn_job("even", layers, (96, 128), {"spread": "chart-to-table", "divide": 8}),
    ]


def run_plan_on_ranks(
    jobs: Sequence[JobConfig], blocks: int = 3, on_layout: OnLayout = lambda _: None
) -> Iterator[MeasuredPlan]:
    """Measure every layout of some jobs on ranks of this machine.

    Args:
        jobs: that have ``RANKS`` ranks.
        blocks: ABBA blocks of the chosen layout against the best one.
        on_layout: is told of each layout that was measured.

    Raises:
        ClusterError: ranks cannot be given a part of a core each.
        RankError: a rank died, hung or raised.
    """
    with started_pool(2 * RANKS) as pool:
        for job in jobs:
            yield _measured(pool, job, blocks, on_layout)


def _measured(pool: ActorPool, job: JobConfig, blocks: int, on_layout: OnLayout) -> MeasuredPlan:
    batches = tuple(plan.samples for plan in islice(job_plans(with_steps(job, _BATCHES)), _BATCHES))
    team = Team(tuple(job.modules), RANKS)
    together = Candidate((team,), dict.fromkeys(job.modules, Shape()), 2, 2)
    trials = trial_jobs(together.unchecked(job), parse_degrees(_DEGREES))
    profile, _ = profiled(pool, [*trial_jobs(job, {}), *trials])
    field = Field(job, [Pool(RANKS)], profile.costs, staged)
    samples = [sample for batch in batches for sample in batch]
    best = make_plan(job, [Pool(RANKS)], profile.costs, staged, batches, samples).best
    others = [each for each in _all_layouts(field, job, batches) if _text(each) != _text(best)]
    found: dict[Finalist, Layout] = {}
    for each in (best, *others):
        found[each] = _layout(pool, each, batches)
        on_layout(found[each])
    quickest = min(found, key=lambda each: found[each].measured_ms)
    ordered = sorted(found.values(), key=lambda each: each.measured_ms)
    return MeasuredPlan(
        job=job.name,
        chosen=found[best],
        best=found[quickest],
        chosen_over_best=found[best].measured_ms / found[quickest].measured_ms,
        rank_correlation=rank_correlation(
            [each.simulated_ms for each in ordered], [each.measured_ms for each in ordered]
        ),
        again=None if quickest is best else _again(pool, best, quickest, blocks),
        layouts=tuple(ordered),
    )


def _all_layouts(field: Field, job: JobConfig, batches: Batches) -> Iterator[Finalist]:
    """Yield every layout, with the microbatches and the schedule that are simulated quickest."""
    for _, alike in groupby(every_candidate(job, RANKS), key=lambda each: each.layout):
        made = map(field.finalist, alike)
        able = [each for each in made if each is not None]
        if able:
            yield min(able, key=lambda each: each.estimate(batches).step_s)


def _layout(pool: ActorPool, finalist: Finalist, batches: Batches) -> Layout:
    """Measure a layout on the samples that it was simulated with."""
    job = with_steps(finalist.job, _WARM_UP + _STEPS)
    with pool.session(job) as session, on_small_cores(session):
        steps = list(loop.train(session.groups, job_plans(job), job.deadlines.step_s))
    measured_s = median(record.step_time_s for record, _ in steps[_WARM_UP:])
    return Layout(_text(finalist), 1e3 * finalist.estimate(batches).step_s, 1e3 * measured_s)


def _text(finalist: Finalist) -> str:
    train = finalist.job.train
    return f"{layout_of(finalist)}, {train.microbatches} microbatches, {train.schedule}"


def _again(pool: ActorPool, chosen: Finalist, best: Finalist, blocks: int) -> Paired:
    jobs = [with_steps(each.job, num_steps(blocks)) for each in (chosen, best)]
    with (
        pool.session(jobs[0]) as mine,
        pool.session(jobs[1]) as other,
        on_small_cores(mine, other),
    ):
        ours, theirs = RayContestant(mine), RayContestant(other)
        ours.name, theirs.name = "chosen", "best"
        return measure(ours, theirs, blocks)


def as_dict(measured: Sequence[MeasuredPlan]) -> dict[str, Any]:
    """Return results as plain data, with what they were made on."""
    return {
        "jobs": [asdict(each) for each in measured],
        "cores_per_rank": CORES_PER_RANK,
        "hardware": hardware(),
        "commit": commit(),
    }
