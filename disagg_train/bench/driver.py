"""What the driver and a rank do for one step of a large job, by its samples and ranks."""

import gc
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

from disagg_train.bench.large_jobs import large_job
from disagg_train.bench.machine import commit, hardware
from disagg_train.bench.spreads import ENCODER, SPREADS
from disagg_train.boundary.of_job import job_edges
from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.driver.step_planner import StepPlanner
from disagg_train.errors import ConfigError
from disagg_train.metrics.pictures import new_figure
from disagg_train.planner.step_plan import StepPlan

_DATA = "instruction"
_LEAST_RANKS = 64
"""A quarter of them are the encoder's, the others lanes of the LLM (tp 8, pp 2)."""

_ENCODER = {"num_layers": 27, "hidden_size": 1152, "num_attention_heads": 16, "patch_size": 14}
_LANGUAGE = {
    "num_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "vocab_size": 128256,
}

_SAMPLES, _RANKS = 4096, 1024
GROWTH = (
    *((samples, _RANKS) for samples in (512, 1024, 2048, _SAMPLES, 8192, 16384)),
    *((_SAMPLES, ranks) for ranks in (64, 128, 256, 512, 2048, 4096)),
)
"""Samples and ranks of the jobs that show how the times grow with either."""


@dataclass(frozen=True)
class DriverResult:
    """Medians over rounds; every round has other samples.

    Args:
        samples: of a step.
        ranks: of the job.
        microbatches: of a step.
        balance_ms: from the samples' sizes to every module's assignment.
        balance_cpu_ms: the same in seconds of this process, which others do not add to.
        routes_one_rank_ms: all routes of a step on one rank: the slower of one of either side.
        routes_one_rank_cpu_ms: likewise.
        digest_ms: what each rank compares before a step.
        step_plan_bytes_per_rank: of the plan that every rank is given.
        fan_out_ms: to write the plan for the object store, and to read it on one rank.
        fan_out_cpu_ms: likewise.
        rounds: how many.
    """

    samples: int
    ranks: int
    microbatches: int
    balance_ms: float
    balance_cpu_ms: float
    routes_one_rank_ms: float
    routes_one_rank_cpu_ms: float
    digest_ms: float
    step_plan_bytes_per_rank: int
    fan_out_ms: float
    fan_out_cpu_ms: float
    rounds: int

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data, with what it was measured on."""
        return asdict(self) | {"hardware": hardware(), "commit": commit()}


def run_driver(
    samples: int, ranks: int, microbatches: int = 16, span: int = 1, rounds: int = 7
) -> DriverResult:
    """Measure one size of a job.

    Args:
        samples: of a step.
        ranks: of the job.
        microbatches: of a step.
        span: microbatches by which samples may be put off.
        rounds: steps that are measured.
    """
    job = driver_job(samples, ranks, microbatches, span)
    drawn = [SPREADS[_DATA].samples(samples, seed) for seed in range(rounds + 1)]
    planner = StepPlanner(job)
    planner.plan(0, drawn[0])
    balance, plans = _timed(lambda sizes: planner.plan(0, sizes), drawn[1:])
    boundary = job_edges(job)[f"{ENCODER}->{LANGUAGE}"]
    sides = boundary.source_places[0], boundary.destination_places[0]
    routes = 0.0, 0.0
    for place in sides:
        boundary.exchanges(plans[0], place)  # a rank finds its neighbours' grids once in a run
        of_place = partial(boundary.exchanges, place=place)
        routes = max(routes, _timed(of_place, map(_received, plans))[0])
    digest, _ = _timed(lambda plan: plan.digest, map(_received, plans))
    fan_out, _ = _timed(_received, plans)
    num_bytes = int(median(len(pickle.dumps(plan, 5)) for plan in plans))
    return DriverResult(
        samples, ranks, microbatches, *balance, *routes, digest[0], num_bytes, *fan_out, rounds
    )


def _received(plan: StepPlan) -> StepPlan:
    """Return a plan as it comes to a rank: nothing about it is worked out yet."""
    bare = StepPlan(plan.step, plan.samples, plan.assignment, plan.learning_rate)
    received: StepPlan = pickle.loads(pickle.dumps(bare, 5))
    return received


def _timed[T, R](run: Callable[[T], R], inputs: Iterable[T]) -> tuple[tuple[float, float], list[R]]:
    """Return the medians of the time and of this process's time, in milliseconds, and results.

    An input is made just before its run, as a rank reads a plan. Whatever is there by then the
    garbage collector leaves alone, so that no run pays for what came before it.
    """
    wall_s, cpu_s, results = [], [], []
    for each in inputs:
        gc.freeze()
        begin_s, begin_cpu_s = perf_counter(), process_time()
        results.append(run(each))
        wall_s.append(perf_counter() - begin_s)
        cpu_s.append(process_time() - begin_cpu_s)
    gc.unfreeze()
    return (1e3 * median(wall_s), 1e3 * median(cpu_s)), results


def driver_job(samples: int, ranks: int, microbatches: int, span: int) -> JobConfig:
    """Return a job of a 400M encoder (dp) and a 7B LLM (tp 8 with sp, pp 4 or 2, dp).

    Raises:
        ConfigError: the ranks cannot be shared out like that.
    """
    if ranks % _LEAST_RANKS:
        raise ConfigError(f"--ranks {ranks} is no multiple of {_LEAST_RANKS}")
    encoders = ranks // 4
    language = ranks - encoders
    pp = 2 if ranks % (2 * _LEAST_RANKS) else 4
    return large_job(
        "bench-driver",
        _ENCODER,
        encoders,
        _LANGUAGE,
        {"tp": 8, "sp": True, "pp": pp, "dp": language // 8 // pp},
        global_batch=samples,
        microbatches=microbatches,
        deferral_span=span,
    )


_LINES = {
    "balance_cpu_ms": ("balance, in the driver", "#1f4e79", 50.0),
    "routes_one_rank_cpu_ms": ("one rank's routes", "#c62828", 5.0),
    "fan_out_cpu_ms": ("plan written and read once", "#2e7d32", None),
}
"""Per time that is drawn: its name, its colour, and its bar in milliseconds."""


def draw_growth(path: Path, results: Sequence[DriverResult]) -> None:
    """Draw how the times grow with samples and with ranks; dashed lines are the bars."""
    figure = new_figure(9.0, 3.8)
    axes = figure.subplots(1, 2, sharey=True)
    for one, by, what, fixed in (
        (axes[0], "samples", "ranks", _RANKS),
        (axes[1], "ranks", "samples", _SAMPLES),
    ):
        shown = [each for each in results if getattr(each, what) == fixed]
        shown.sort(key=lambda each: int(getattr(each, by)))
        sizes = [getattr(each, by) for each in shown]
        for name, (label, colour, bar_ms) in _LINES.items():
            times_ms = [getattr(each, name) for each in shown]
            one.plot(sizes, times_ms, "o-", ms=4, color=colour, label=label)
            if bar_ms is not None:
                one.axhline(bar_ms, color=colour, ls="--", lw=0.8)
        one.set(xscale="log", yscale="log", xlabel=f"{by}, at {fixed:,} {what}")
        one.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=45)
        one.minorticks_off()
        one.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("process time, median, ms")
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)
