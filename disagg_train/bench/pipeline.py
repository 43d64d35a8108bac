"""``disagg-train bench step --pp``: steps of an LLM in pipeline stages.

With an encoder, under Ray and without it; and the LLM alone, under Ray against Megatron's own
1F1B without it. What Ray costs is thus part of the second ratio, and is the first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from actors.pool import ActorPool
from actors.rendezvous import RendezvousHost
from disagg_train.bench.alternation import Paired, alternate, num_steps
from disagg_train.bench.jobs import language_job, pipeline_job, with_steps
from disagg_train.bench.statistics import Interval
from disagg_train.bench.step import StepResult, run_step_on
from disagg_train.bench.torchrun import PlainContestant, make_megatron, start_torchrun
from disagg_train.bench.under_ray import RayContestant, started_pool
from disagg_train.config.job import JobConfig


@dataclass(frozen=True)
class PipelineResult:
    """Step times in milliseconds, measured as in ``StepResult``.

    Args:
        step: encoder and LLM, under Ray against torchrun; also the machine and the commit.
        ours_ms: a step of the LLM alone under Ray actors, handed out by the driver.
        megatron_ms: the same step under Megatron's 1F1B, in plain processes.
        ratio_megatron: median of the blocks' ratios, ours / Megatron.
        ratio_megatron_interval_95: bootstrap interval of that median.
        a_a_megatron_interval_95: the same of each block's two runs of Megatron's against
            each other.
        samples_ms: every run's time per step of the LLM alone, by contestant.
    """

    step: StepResult
    ours_ms: float
    megatron_ms: float
    ratio_megatron: float
    ratio_megatron_interval_95: Interval
    a_a_megatron_interval_95: Interval
    samples_ms: Mapping[str, Sequence[float]]

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return asdict(self)


def run_pipeline(blocks: int = 20) -> PipelineResult:
    """Measure both jobs, one after the other on the same actors.

    Args:
        blocks: ABBA blocks of each comparison.

    Raises:
        ConfigError: there is no block to measure.
        RankError: a rank died, hung or raised.
        PlanError: two contestants did not train the same.
    """
    steps = num_steps(blocks)
    with_encoder, alone = with_steps(pipeline_job(), steps), with_steps(language_job(), steps)
    with started_pool(with_encoder.num_ranks) as pool:
        step = run_step_on(pool, with_encoder, blocks)
        paired = _against_megatron(pool, alone, blocks)
    return PipelineResult(
        step=step,
        ours_ms=paired.ours_ms,
        megatron_ms=paired.other_ms,
        ratio_megatron=paired.ratio,
        ratio_megatron_interval_95=paired.ratio_interval_95,
        a_a_megatron_interval_95=paired.a_a_interval_95,
        samples_ms=paired.samples_ms,
    )


def _against_megatron(pool: ActorPool, job: JobConfig, blocks: int) -> Paired:
    host = RendezvousHost("127.0.0.1")
    with (
        start_torchrun(job, host.next_epoch(), make_megatron) as ranks,
        pool.session(job) as session,
    ):
        return alternate(RayContestant(session), PlainContestant("megatron", ranks), blocks)
