"""How long planning takes, and how many samples a plan has to be made from.

Figures are simulated with the sizes of models and an H100; only the seconds of planning are
measured. A 6B encoder and a 123B LLM on charts are a job whose best layout depends on the ratio of
encoder to LLM work: that decides how many GPUs, and how many replicas, the encoder gets.

A plan "from b samples" is the planner's choice on steps of these samples alone, taken again and
again until a step is full, among the finalists that the whole data set and other ratios have
brought up (``Plan.contenders``).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from statistics import mean
from time import perf_counter, process_time
from types import MappingProxyType
from typing import Any

import numpy as np

from disagg_train.bench.machine import commit, hardware
from disagg_train.bench.model_sizes import MISTRAL_LARGE, QWEN_7B, vit
from disagg_train.bench.spreads import ENCODER, PATCHES_PER_TOKEN, SPREADS
from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.config.load import load_job
from disagg_train.driver.cost_sources import by_size, pool_of
from disagg_train.driver.planning import MOST_BATCHES, layout_of, staged
from disagg_train.planner.finalists import Finalist, quickest
from disagg_train.planner.plan import Plan, make_plan
from disagg_train.planner.step_plan import SampleSize
from disagg_train.planner.workload import Batches

SIZES = (1, 4, 16, 64, 256)
"""Samples that plans are made from."""

_GPU, _DATA, _SAMPLES = "H100", "chart-to-table", 4096
_ALIVE = 1.02
"""Times of the quickest's step within which a finalist has to come at some ratio to be asked."""
_RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0)

_VIT_6B = vit(40, 3584, 28)
_LANGUAGES = MappingProxyType({"7B": QWEN_7B, "123B": MISTRAL_LARGE})


@dataclass(frozen=True)
class Size:
    """A job to plan.

    Args:
        language: its LLM.
        gpus: that it gets.
        global_batch: samples of a step.
    """

    language: str
    gpus: int
    global_batch: int


SCALES = (Size("7B", 64, 256), Size("123B", 1024, 1024), Size("123B", 10_000, 8192))
"""Jobs whose planning is timed; 10,000 GPUs are 1,250 nodes of 8."""

_DEPENDS = Size("123B", 128, 128)


@dataclass(frozen=True)
class Draws:
    """What was chosen from so many samples.

    Args:
        b: samples.
        draws: of so many samples, with replacement.
        equal: draws whose plan has the groups and degrees of the whole data set's plan.
        times_mean: a step of the plans chosen, in times of the best one's, on the whole data set.
        times_wrong: the same of those that are not equal; None where all are.
        times_max: the worst of them.
    """

    b: int
    draws: int
    equal: int
    times_mean: float
    times_wrong: float | None
    times_max: float


@dataclass(frozen=True)
class BMin:
    """How many samples a plan needs.

    Args:
        job: its modules.
        gpus: that it gets.
        data: kind of data.
        samples: of the whole data set.
        best: the layout chosen from all of them.
        margin: factors of the encoders' work between which the choice holds.
        variation: standard deviation of one sample's ratio of encoder to LLM work.
        b_min: what the planner says.
        contenders: layouts, with their step in times of the best one's on the whole data set.
        rows: by the number of samples.
    """

    job: str
    gpus: int
    data: str
    samples: int
    best: str
    margin: tuple[float, float]
    variation: float
    b_min: int | None
    contenders: dict[str, float]
    rows: tuple[Draws, ...]


@dataclass(frozen=True)
class Timed:
    """How long one plan took.

    Args:
        job: its modules.
        gpus: that it was for.
        global_batch: samples of a step.
        took_s: seconds.
        cpu_s: of this process, which others on the machine do not add to.
        ranked: candidates.
        simulated: of these.
        best: the layout.
    """

    job: str
    gpus: int
    global_batch: int
    took_s: float
    cpu_s: float
    ranked: int
    simulated: int
    best: str


@dataclass(frozen=True)
class PlanResult:
    """All that was found."""

    b_min: BMin
    planning: tuple[Timed, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data, with what it was measured on."""
        return asdict(self) | {"gpu": _GPU, "hardware": hardware(), "commit": commit()}


def run_plan(
    draws: int = 100,
    sizes: Sequence[int] = SIZES,
    scales: Sequence[Size] = SCALES,
) -> PlanResult:
    """Measure planning.

    Args:
        draws: of each number of samples.
        sizes: numbers of samples that plans are made from.
        scales: jobs whose planning is timed.
    """
    shown = demonstrate_b_min(draws, sizes)
    return PlanResult(shown, tuple(timed(each) for each in scales))


def timed(size: Size) -> Timed:
    """Plan a job, as ``disagg-train plan`` does, and time it."""
    samples = SPREADS[_DATA].samples(max(_SAMPLES, size.global_batch), seed=0)
    begin_s, begin_cpu_s = perf_counter(), process_time()
    plan = _planned(size, samples)
    return Timed(
        _name(size),
        size.gpus,
        size.global_batch,
        perf_counter() - begin_s,
        process_time() - begin_cpu_s,
        plan.num_ranked,
        plan.num_simulated,
        layout_of(plan.best),
    )


def demonstrate_b_min(draws: int, sizes: Sequence[int]) -> BMin:
    """Choose plans from few samples and from all; say how often they are the same.

    Args:
        draws: of each number of samples.
        sizes: the numbers; the planner's own ``b_min`` joins them.
    """
    samples = SPREADS[_DATA].samples(_SAMPLES, seed=0)
    plan = _planned(_DEPENDS, samples)
    whole = _steps(samples, _DEPENDS.global_batch)
    asked = _alive(plan)
    steps_s = {each: each.estimate(whole).step_s for each in asked}
    best = quickest(asked, whole)
    times = {each: step_s / steps_s[best] for each, step_s in steps_s.items()}
    own = [plan.b_min] if plan.b_min else []
    return BMin(
        job=_name(_DEPENDS),
        gpus=_DEPENDS.gpus,
        data=_DATA,
        samples=len(samples),
        best=layout_of(best),
        margin=(plan.margin.low, plan.margin.high),
        variation=plan.ratio.variation,
        b_min=plan.b_min,
        contenders=_by_layout(times),
        rows=tuple(_drawn(b, draws, samples, times, best) for b in sorted({*sizes, *own})),
    )


def _drawn(
    b: int,
    draws: int,
    samples: Sequence[SampleSize],
    times: dict[Finalist, float],
    best: Finalist,
) -> Draws:
    rng = np.random.default_rng(b)
    chosen = [
        _choice(tuple(times), [samples[at] for at in rng.integers(len(samples), size=b)])
        for _ in range(draws)
    ]
    equal = [each.candidate.layout == best.candidate.layout for each in chosen]
    costs = [times[each] for each in chosen]
    wrong = [cost for cost, same in zip(costs, equal, strict=True) if not same]
    return Draws(b, draws, sum(equal), mean(costs), mean(wrong) if wrong else None, max(costs))


def _choice(finalists: Sequence[Finalist], drawn: Sequence[SampleSize]) -> Finalist:
    """Return what the planner chooses where some samples are all that it knows."""
    full = max(1, len(drawn) // _DEPENDS.global_batch) * _DEPENDS.global_batch
    steps = _steps(tuple(islice(cycle(drawn), full)), _DEPENDS.global_batch)
    memory = pool_of(_DEPENDS.gpus, _GPU).memory_bytes
    fitting = [each for each in finalists if max(each.estimate(steps).num_bytes.values()) <= memory]
    return quickest(fitting or finalists, steps)


def _alive(plan: Plan) -> list[Finalist]:
    """Return the contenders that come near the quickest at any ratio."""
    first, found = plan.batches[:1], dict.fromkeys(plan.contenders)
    alive: dict[Finalist, None] = {}
    for ratio in _RATIOS:
        steps_s = {each: each.estimate(first, ratio).step_s for each in found}
        limit_s = _ALIVE * min(steps_s.values())
        alive |= dict.fromkeys(each for each in found if steps_s[each] <= limit_s)
    return list(alive)


def _by_layout(times: dict[Finalist, float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for each, cost in sorted(times.items(), key=lambda item: item[1]):
        found.setdefault(layout_of(each), cost)
    return found


def _planned(size: Size, samples: tuple[SampleSize, ...]) -> Plan:
    batches = _steps(samples, size.global_batch)[:MOST_BATCHES]
    pools = [pool_of(size.gpus, _GPU)]
    return make_plan(_job(size), pools, by_size(_GPU).costs_of, staged, batches, samples)


def _steps(samples: tuple[SampleSize, ...], size: int) -> Batches:
    """Return whole steps of samples, in order."""
    starts = range(0, len(samples) - size + 1, size)
    return tuple(samples[start : start + size] for start in starts)


def _name(size: Size) -> str:
    return f"6B + {size.language}"


def _job(size: Size) -> JobConfig:
    vision = {
        "kind": "vit",
        "group": "all",
        "model": dict(_VIT_6B),
        "projector": {"merge": PATCHES_PER_TOKEN},
    }
    language = {"kind": "gpt", "group": "all", "model": dict(_LANGUAGES[size.language])}
    train = {
        "steps": 1,
        "global_batch": size.global_batch,
        "precision": "bf16",
        "optimizer": {"lr": 1e-4},
    }
    content = {
        "name": _name(size),
        "groups": {"all": {"ranks": 1}},
        "modules": {ENCODER: vision, LANGUAGE: language},
        "train": train,
    }
    return load_job(content)
