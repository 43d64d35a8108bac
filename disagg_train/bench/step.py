"""``disagg-train bench step``: the same op lists under Ray and without it, in one run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from actors.pool import ActorPool
from actors.rendezvous import RendezvousHost
from disagg_train.bench.alternation import STEPS_PER_RUN, Paired, alternate, num_steps
from disagg_train.bench.jobs import with_steps
from disagg_train.bench.machine import commit, hardware
from disagg_train.bench.statistics import Interval
from disagg_train.bench.torchrun import PlainContestant, start_torchrun
from disagg_train.bench.under_ray import RayContestant, started_pool
from disagg_train.config.job import JobConfig


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
    job = with_steps(job, num_steps(blocks))
    with started_pool(job.num_ranks) as pool:
        return run_step_on(pool, job, blocks)


def run_step_on(pool: ActorPool, job: JobConfig, blocks: int) -> StepResult:
    """Measure on actors that are there; ``job`` has as many steps as ``blocks`` need."""
    host = RendezvousHost("127.0.0.1")
    with start_torchrun(job, host.next_epoch()) as ranks, pool.session(job) as session:
        under_ray = RayContestant(session)
        paired = alternate(under_ray, PlainContestant("torchrun", ranks), blocks)
        return _result(paired, under_ray.dead_time_fraction, blocks)


def _result(paired: Paired, dead_time: float, blocks: int) -> StepResult:
    return StepResult(
        ray_ms=paired.ours_ms,
        torchrun_ms=paired.other_ms,
        ratio=paired.ratio,
        ratio_interval_95=paired.ratio_interval_95,
        a_a_interval_95=paired.a_a_interval_95,
        dead_time_fraction=dead_time,
        blocks=blocks,
        steps_per_run=STEPS_PER_RUN,
        hardware=hardware(),
        commit=commit(),
        samples_ms=paired.samples_ms,
    )
