"""``disagg-train bench balance --measured``: steps on ranks, as they come against balanced.

Every rank has a part of a core to itself, so that waiting costs what it costs on GPUs. Both sets
of ranks live all the time, one of them idle.
"""

from dataclasses import asdict, dataclass
from itertools import islice
from statistics import mean
from typing import Any

from disagg_train.bench.alternation import STEPS_PER_RUN, Paired, alternate
from disagg_train.bench.jobs import balanced_by, drawn_job, with_steps
from disagg_train.bench.machine import commit, hardware
from disagg_train.bench.small_cores import CORES_PER_RANK, on_small_cores, profiled
from disagg_train.bench.torchrun import job_plans
from disagg_train.bench.under_ray import RayContestant, started_pool
from disagg_train.boundary.of_job import job_graph
from disagg_train.config.job import JobConfig
from disagg_train.driver.schedules import checked_training_schedule
from disagg_train.planner.profiles import Profile
from disagg_train.planner.sample_costs import SampleTable
from disagg_train.planner.seats import Seats
from disagg_train.planner.step_costs import step_costs
from disagg_train.planner.trials import trial_jobs
from disagg_train.schedule.simulate import simulate

_STEPS_PER_RUN = 8
"""The first step of a run has nothing made ready while another one ran."""


@dataclass(frozen=True)
class MeasuredBalance:
    """``balance: none`` against ``both`` on the same samples.

    Args:
        times: of a step, balanced against as they come.
        tokens_ratio: tokens per second with ``both``, over those with ``none``.
        simulated_ratio: the same, simulated with costs that were profiled on these ranks.
        simulated_none_ms: a step, mean of those that were measured.
        simulated_both_ms: the same, balanced.
        profile_error: of simulated steps of the profile's own trial, relative.
        ranks: of the job.
        cores_per_rank: that each had.
        blocks: ABBA blocks.
    """

    times: Paired
    tokens_ratio: float
    simulated_ratio: float
    simulated_none_ms: float
    simulated_both_ms: float
    profile_error: float
    ranks: int
    cores_per_rank: float
    blocks: int

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data, with what it was made on."""
        return asdict(self) | {"hardware": hardware(), "commit": commit()}


def uneven_job(balance: str) -> JobConfig:
    """Return a job on chart-to-table data whose encoder has about as much to do as its LLM."""
    layers = {"num_layers": 4, "num_attention_heads": 4}
    job = drawn_job(f"bench-balance-{balance}", layers, (112, 128), {"divide": 8})
    return balanced_by(job, balance, global_batch=64, microbatches=16)


def run_balance_on_ranks(blocks: int = 3) -> MeasuredBalance:
    """Measure on ranks of this machine.

    Args:
        blocks: ABBA blocks.

    Raises:
        ClusterError: ranks cannot be given a part of a core each.
        RankError: a rank died, hung or raised.
        PlanError: the two did not train the same.
    """
    num_steps = STEPS_PER_RUN + 2 * blocks * _STEPS_PER_RUN
    none, both = (with_steps(uneven_job(kind), num_steps) for kind in ("none", "both"))
    with started_pool(none.num_ranks + both.num_ranks) as pool:
        profile, error = profiled(pool, trial_jobs(none, {}))
        with (
            pool.session(none) as plain,
            pool.session(both) as balanced,
            on_small_cores(plain, balanced),
        ):
            ours, other = RayContestant(balanced), RayContestant(plain)
            ours.name, other.name = "both", "none"
            times = alternate(ours, other, blocks, _STEPS_PER_RUN)
    num_measured = len(ours.losses)
    none_s, both_s = (_simulated_s(job, profile, num_measured) for job in (none, both))
    return MeasuredBalance(
        times=times,
        tokens_ratio=1.0 / times.ratio,
        simulated_ratio=none_s / both_s,
        simulated_none_ms=1e3 * none_s,
        simulated_both_ms=1e3 * both_s,
        profile_error=error,
        ranks=none.num_ranks,
        cores_per_rank=CORES_PER_RANK,
        blocks=blocks,
    )


def _simulated_s(job: JobConfig, profile: Profile, num_measured: int) -> float:
    """Return the mean seconds of the steps that were measured, simulated."""
    graph, costs = job_graph(job), profile.costs(job)
    schedule = checked_training_schedule(job, graph)
    steps_s = []
    for plan in islice(job_plans(job), STEPS_PER_RUN, num_measured):
        table = SampleTable.of(plan.samples, list(job.encoders))
        seats = {name: Seats.of(each) for name, each in plan.assignment.items()}
        model = step_costs(job, graph, costs, table, seats)
        steps_s.append(simulate(schedule, graph, model).step_time_s)
    return mean(steps_s)
