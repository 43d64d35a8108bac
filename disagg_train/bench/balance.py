"""How alike balancing makes microbatches, and what that is worth: simulated, on drawn samples."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from disagg_train.bench.large_jobs import large_job
from disagg_train.bench.machine import commit, hardware
from disagg_train.bench.model_sizes import QWEN_7B, SO400M
from disagg_train.bench.spreads import ENCODER, SPREADS
from disagg_train.boundary.of_job import job_graph
from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.driver.plans import TrainingPlans
from disagg_train.driver.schedules import job_schedules
from disagg_train.planner.analytic_costs import analytic_costs, costs_by_size
from disagg_train.planner.machine import Machine
from disagg_train.planner.sample_costs import Floats, SampleTable
from disagg_train.planner.seats import Seats
from disagg_train.planner.step_costs import lane_sums
from disagg_train.planner.step_plan import SampleSize, StepPlan
from disagg_train.schedule.ops import OpKind
from disagg_train.schedule.simulate import simulate

_MODULES = (ENCODER, LANGUAGE)


@dataclass(frozen=True)
class SpreadResult:
    """One kind of data, ``balance: none`` against ``both``; means over steps.

    Args:
        data: its kind.
        std_none_ms: per module, of the forward times of a step's microbatches and dp ranks.
        std_both_ms: the same, balanced.
        std_ratio: the former over the latter.
        step_none_s: simulated.
        step_both_s: simulated.
        throughput_ratio: the former over the latter.
        least_throughput_ratio: of any step.
    """

    data: str
    std_none_ms: Mapping[str, float]
    std_both_ms: Mapping[str, float]
    std_ratio: Mapping[str, float]
    step_none_s: float
    step_both_s: float
    throughput_ratio: float
    least_throughput_ratio: float


@dataclass(frozen=True)
class BalanceResult:
    """All kinds of data."""

    steps: int
    samples_per_step: int
    deferral_span: int
    spreads: tuple[SpreadResult, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data, with what it was made on."""
        parameters = {name: asdict(spread) for name, spread in SPREADS.items()}
        made_on = {"hardware": hardware(), "commit": commit(), "costs": str(Machine())}
        return asdict(self) | {"parameters": parameters} | made_on


def balance_job(balance: str, span: int, batch: int, microbatches: int) -> JobConfig:
    """Return a job of a 400M encoder on 4 ranks and a 7B LLM on 32."""
    return large_job(
        "bench-balance",
        SO400M,
        4,
        QWEN_7B,
        {"tp": 4, "sp": True, "pp": 2, "dp": 4},
        global_batch=batch,
        microbatches=microbatches,
        balance=balance,
        deferral_span=span,
    )


def run_balance(
    steps: int = 20, batch: int = 512, microbatches: int = 32, span: int = 1
) -> BalanceResult:
    """Simulate steps of every kind of data, unbalanced and balanced.

    The unbalanced job has no deferral span: its schedule pays nothing for what it does not use.

    Args:
        steps: of each kind of data.
        batch: samples of a step.
        microbatches: of a step.
        span: microbatches by which the LLM may put samples off.
    """
    none = balance_job("none", 0, batch, microbatches)
    both = balance_job("both", span, batch, microbatches)
    results = [
        _compare(name, none, both, [spread.samples(batch, seed) for seed in range(steps)])
        for name, spread in SPREADS.items()
    ]
    return BalanceResult(steps, batch, span, tuple(results))


def _compare(
    name: str, none: JobConfig, both: JobConfig, batches: Sequence[tuple[SampleSize, ...]]
) -> SpreadResult:
    found = {job.train.balance: _simulated(job, batches) for job in (none, both)}
    std = {
        key: {module: 1e3 * mean(each.std_s[module] for each in steps) for module in _MODULES}
        for key, steps in found.items()
    }
    steps_s = {key: [each.step_s for each in steps] for key, steps in found.items()}
    ratios = [a / b for a, b in zip(steps_s["none"], steps_s["both"], strict=True)]
    return SpreadResult(
        data=name,
        std_none_ms=std["none"],
        std_both_ms=std["both"],
        std_ratio={module: std["none"][module] / std["both"][module] for module in _MODULES},
        step_none_s=mean(steps_s["none"]),
        step_both_s=mean(steps_s["both"]),
        throughput_ratio=sum(steps_s["none"]) / sum(steps_s["both"]),
        least_throughput_ratio=min(ratios),
    )


@dataclass(frozen=True)
class _Step:
    step_s: float
    std_s: Mapping[str, float]


def _simulated(job: JobConfig, batches: Sequence[tuple[SampleSize, ...]]) -> list[_Step]:
    graph, (schedule, _) = job_graph(job), job_schedules(job)
    found = []
    for samples in batches:
        plan = next(TrainingPlans(job, iter([samples])))
        costs = analytic_costs(job, graph, plan, Machine())
        step_s = simulate(schedule, graph, costs).step_time_s
        std_s = {module: float(_forward_s(job, plan, module).std()) for module in _MODULES}
        found.append(_Step(step_s, std_s))
    return found


def _forward_s(job: JobConfig, plan: StepPlan, module: str) -> Floats:
    """Return the seconds of a module's forwards, of all stages, ``[microbatch, dp rank]``."""
    table = SampleTable.of(plan.samples, list(job.encoders))
    tokens_ML, squares_ML = lane_sums(job, table, module, Seats.of(plan.assignment[module]))
    stages = costs_by_size(job, Machine()).modules[module].stages
    forwards = [stage.passes[OpKind.FORWARD].of_lanes(tokens_ML, squares_ML) for stage in stages]
    total: Floats = sum(forwards[1:], forwards[0])
    return total
