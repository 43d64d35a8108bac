"""``disagg-train bench step``: the same op lists under Ray and without it, in one run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from statistics import median
from time import perf_counter
from typing import Any

from actors.cluster import RayConnection
from actors.pool import ActorPool
from actors.rendezvous import RendezvousHost
from actors.session import Session
from disagg_train.bench.dead_time import dead_time_fraction
from disagg_train.bench.machine import commit, hardware
from disagg_train.bench.processes import Processes
from disagg_train.bench.statistics import Interval, bootstrap_interval
from disagg_train.bench.torchrun import job_plans, start_torchrun
from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.driver import loop
from disagg_train.driver.loop import Reports
from disagg_train.engine.setup import RankSetup
from disagg_train.errors import ConfigError, PlanError
from disagg_train.planner.step_plan import StepPlan

_STEPS_PER_RUN = 3
_RUNS_PER_BLOCK = 4
_SAME_LOSS = 1e-5


@dataclass(frozen=True)
class StepResult:
    """Step times in milliseconds; medians over runs of a few consecutive steps.

    A block is four runs, Ray torchrun torchrun Ray or the other way round; its ratio is
    that of the sums. Both sets of processes live all the time, one of them idle.

    Args:
        ray_ms: a step under Ray actors, handed out by the driver.
        torchrun_ms: a step in plain processes that make their plans themselves.
        ratio: median of the blocks' ratios, Ray / torchrun.
        ratio_interval_95: bootstrap interval of that median.
        a_a_interval_95: the same of each block's two torchrun runs against each other.
        dead_time_fraction: under Ray, time between ops and steps over all time, of the
            worst rank.
        blocks: number of blocks.
        steps_per_run: consecutive steps in a run.
        hardware: the machine.
        commit: of the checkout.
        samples_ms: every run's time per step, by contestant.
    """

    ray_ms: float
    torchrun_ms: float
    ratio: float
    ratio_interval_95: Interval
    a_a_interval_95: Interval
    dead_time_fraction: float
    blocks: int
    steps_per_run: int
    hardware: Mapping[str, str | int]
    commit: str
    samples_ms: Mapping[str, Sequence[float]]

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return asdict(self)


def bench_job() -> JobConfig:
    """Return the job that is measured by default: two ranks, steps of 300 ms or more."""
    return load_job(
        {
            "name": "bench-step",
            "groups": {"encoders": {"ranks": 1}, "language": {"ranks": 1}},
            "modules": {
                "vision": {
                    "kind": "vit",
                    "group": "encoders",
                    "model": {
                        "num_layers": 4,
                        "hidden_size": 256,
                        "num_attention_heads": 4,
                        "patch_size": 4,
                    },
                },
                "language": {
                    "kind": "gpt",
                    "group": "language",
                    "model": {"num_layers": 4, "hidden_size": 256, "num_attention_heads": 4},
                },
            },
            "train": {
                "steps": 1,
                "global_batch": 32,
                "microbatches": 4,
                "optimizer": {"lr": 1e-3},
                "evaluation": {"samples": 0},
            },
            "device": "cpu",
        }
    )


class _Measurement:
    """Both sets of processes, and what was measured on them.

    Args:
        session: ranks under Ray.
        torchrun: ranks without it.
    """

    def __init__(self, session: Session, torchrun: Processes[RankSetup, list[float]]) -> None:
        self._session, self._torchrun = session, torchrun
        self._plans: Iterator[StepPlan] = job_plans(session.job)
        self._losses: dict[str, list[float]] = {"ray": [], "torchrun": []}
        self.traces: list[list[Reports]] = []

    def ray(self) -> float:
        """Run a few steps under Ray; return seconds per step."""
        plans = list(islice(self._plans, _STEPS_PER_RUN))
        begin_s = perf_counter()
        deadline_s = self._session.job.deadlines.step_s
        reports = [found for _, found in loop.train(self._session.groups, plans, deadline_s)]
        elapsed_s = perf_counter() - begin_s
        self.traces.append(reports)
        self._losses["ray"] += [step[0].loss_sum for step in reports]
        return elapsed_s / _STEPS_PER_RUN

    def torchrun(self) -> float:
        """Run as many steps without Ray; return seconds per step."""
        begin_s = perf_counter()
        losses, *_ = self._torchrun.run(_STEPS_PER_RUN)
        elapsed_s = perf_counter() - begin_s
        self._losses["torchrun"] += losses
        return elapsed_s / _STEPS_PER_RUN

    def check_same(self) -> None:
        """Hold the losses of both against each other: the same steps must have run.

        Raises:
            PlanError: a step's loss differs.
        """
        pairs = zip(self._losses["ray"], self._losses["torchrun"], strict=True)
        for step, (ours, other) in enumerate(pairs):
            if abs(ours - other) > _SAME_LOSS * max(abs(other), 1.0):
                raise PlanError(f"step {step}: loss {ours} under Ray, {other} under torchrun")


def run_step(job: JobConfig, blocks: int = 20) -> StepResult:
    """Measure steps under Ray and without it, in alternation.

    Args:
        job: the job; its number of steps is set to what is needed.
        blocks: ABBA blocks.

    Raises:
        ConfigError: there is no block to measure.
        RankError: a rank died, hung or raised.
        PlanError: the two did not train the same.
    """
    if blocks < 1:
        raise ConfigError(
            f"blocks={blocks}: use at least 1, and 20 for an interval that means much"
        )
    steps = (blocks * _RUNS_PER_BLOCK // 2 + 1) * _STEPS_PER_RUN
    job = job.model_copy(update={"train": job.train.model_copy(update={"steps": steps})})
    with ExitStack() as stack:
        host = RendezvousHost("127.0.0.1")
        torchrun = stack.enter_context(start_torchrun(job, host.next_epoch()))
        stack.callback(RayConnection(None, job.num_ranks).close)
        pool = ActorPool(job.num_ranks)
        stack.callback(pool.close)
        session = stack.enter_context(pool.session(job))
        return _measure(_Measurement(session, torchrun), blocks)


def _measure(measurement: _Measurement, blocks: int) -> StepResult:
    measurement.ray()
    measurement.torchrun()
    measurement.traces.clear()
    runs: dict[str, Callable[[], float]] = {
        "ray": measurement.ray,
        "torchrun": measurement.torchrun,
    }
    samples_s: dict[str, list[float]] = {name: [] for name in runs}
    for block in range(blocks):
        outer, inner = ("ray", "torchrun") if block % 2 == 0 else ("torchrun", "ray")
        for name in (outer, inner, inner, outer):
            samples_s[name].append(runs[name]())
    measurement.check_same()
    return _result(samples_s, dead_time_fraction(measurement.traces))


def _result(samples_s: Mapping[str, Sequence[float]], dead_time: float) -> StepResult:
    under_ray, plain = _pairs(samples_s["ray"]), _pairs(samples_s["torchrun"])
    ratios = [sum(ours) / sum(other) for ours, other in zip(under_ray, plain, strict=True)]
    return StepResult(
        ray_ms=1e3 * median(samples_s["ray"]),
        torchrun_ms=1e3 * median(samples_s["torchrun"]),
        ratio=median(ratios),
        ratio_interval_95=bootstrap_interval(ratios),
        a_a_interval_95=bootstrap_interval([first / second for first, second in plain]),
        dead_time_fraction=dead_time,
        blocks=len(ratios),
        steps_per_run=_STEPS_PER_RUN,
        hardware=hardware(),
        commit=commit(),
        samples_ms={name: [1e3 * s for s in times] for name, times in samples_s.items()},
    )


def _pairs(times_s: Sequence[float]) -> list[tuple[float, float]]:
    """Return a contestant's two runs of each block."""
    return list(zip(times_s[::2], times_s[1::2], strict=True))
