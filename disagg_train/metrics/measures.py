"""What is derived of a step, for sinks: rates, utilization and idle time. Pure.

``docs/monitoring.md`` lists all of it with units.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from disagg_train.metrics.records import Evaluation, RankReport, StepRecord

_GIGA = 1e9
_COMPUTE = ("forward", "backward")
_JOINT = "->"


@dataclass(frozen=True)
class Standing:
    """What a run knows at the end of a step, beside the step itself.

    Args:
        restarts: how often actors were made anew after a failure.
        skipped_steps: steps whose update was skipped, so far.
        checkpoints: complete checkpoints written since the driver was started.
        steps_at_risk: steps that a failure would have to run again: those since the newest state
            that is kept, in memory or in a checkpoint.
        queues: lengths by name.
    """

    restarts: int = 0
    skipped_steps: int = 0
    checkpoints: int = 0
    steps_at_risk: int = 0
    queues: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Measures:
    """A step with all that is derived of it.

    Args:
        record: of the step.
        bubble: part of the step in which a rank runs no forward or backward, the mean of all
            ranks; None without spans.
        module_bubble: the mean over the ranks that host a module; colocated ones share theirs.
        boundary_gbytes_per_s: per boundary, 10^9 bytes that its ranks sent across in both
            directions, over the step time: its mean load, not what its links could carry.
        mfu: model FLOPs over the peak of all ranks' GPUs; None where either is not known.
        standing: of the run.
    """

    record: StepRecord
    bubble: float | None = None
    module_bubble: Mapping[str, float] = field(default_factory=dict)
    boundary_gbytes_per_s: Mapping[str, float] = field(default_factory=dict)
    mfu: float | None = None
    standing: Standing = field(default_factory=Standing)

    @property
    def target_tokens_per_s(self) -> float:
        """Tokens per second that have a label."""
        record = self.record
        return record.num_target_tokens / record.step_time_s if record.step_time_s else 0.0

    def scalars(self) -> dict[str, float]:
        """Return all numbers by names as trackers show them; what is not known is left out."""
        found = dict(self._of_the_step())
        for name, times in self.record.modules.items():
            found[f"modules/{name}/forward_s"] = times.forward_s
            found[f"modules/{name}/backward_s"] = times.backward_s
            found[f"modules/{name}/boundary_s"] = times.boundary_s
        for name, bubble in self.module_bubble.items():
            found[f"modules/{name}/bubble"] = bubble
        for name, load in self.boundary_gbytes_per_s.items():
            found[f"boundaries/{name.replace(_JOINT, '_to_')}/gbytes_per_s"] = load
        for name, length in self.standing.queues.items():
            found[f"queues/{name}"] = length
        return found

    def _of_the_step(self) -> Iterator[tuple[str, float]]:
        record, standing = self.record, self.standing
        yield "train/loss", record.loss
        yield "train/grad_norm", record.grad_norm
        yield "train/learning_rate", record.lr
        yield "speed/step_s", record.step_time_s
        yield "speed/tokens_per_s", record.tokens_per_s
        yield "speed/target_tokens_per_s", self.target_tokens_per_s
        yield "memory/peak_boundary_bytes", record.peak_boundary_bytes
        yield "run/skipped_steps", standing.skipped_steps
        yield "run/skipped_samples", record.num_bad_samples
        yield "run/restarts", standing.restarts
        yield "run/checkpoints", standing.checkpoints
        yield "run/steps_at_risk", standing.steps_at_risk
        if record.loss_scale is not None:
            yield "train/loss_scale", record.loss_scale
        if record.peak_activation_bytes:
            yield "memory/peak_activation_bytes", record.peak_activation_bytes
        if self.bubble is not None:
            yield "speed/bubble", self.bubble
        if self.mfu is not None:
            yield "speed/mfu", self.mfu


def measure(
    record: StepRecord,
    reports: Sequence[RankReport],
    standing: Standing,
    mfu: float | None = None,
) -> Measures:
    """Return a step with what follows from it.

    Args:
        record: of the step.
        reports: of all ranks, of the same step.
        standing: of the run.
        mfu: of the step, if it is known.
    """
    idle = {each.place: _idle(each, record.step_time_s) for each in reports if each.spans}
    hosts = {
        name: [idle[each.place] for each in reports if name in each.modules and each.spans]
        for name in record.modules
    }
    return Measures(
        record,
        _mean(list(idle.values())) if idle else None,
        {name: _mean(of_ranks) for name, of_ranks in hosts.items() if of_ranks},
        _boundary_loads(reports, record.step_time_s),
        mfu,
        standing,
    )


def evaluation_scalars(evaluation: Evaluation) -> dict[str, float]:
    """Return an evaluation's numbers by names as trackers show them."""
    return {
        "evaluation/loss": evaluation.loss,
        "evaluation/accuracy": evaluation.accuracy,
        "evaluation/exact_match": evaluation.exact_match,
        "evaluation/token_f1": evaluation.token_f1,
    }


def evaluated_step(evaluation: Evaluation) -> int:
    """Return the number of the last step before an evaluation, where trackers show it."""
    return max(evaluation.step - 1, 0)


def _idle(report: RankReport, step_time_s: float) -> float:
    """Return the part of a step in which a rank computes nothing."""
    busy_s = sum(span.duration_s for span in report.spans if span.category in _COMPUTE)
    return max(0.0, 1.0 - busy_s / step_time_s) if step_time_s else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _boundary_loads(reports: Sequence[RankReport], step_time_s: float) -> dict[str, float]:
    """Return the load of every boundary; links between stages of one module are none."""
    sent: dict[str, int] = {}
    for report in reports:
        for name, num_bytes in report.sent_bytes.items():
            if "." not in name:
                sent[name] = sent.get(name, 0) + num_bytes
    return {
        name: num_bytes / _GIGA / step_time_s if step_time_s else 0.0
        for name, num_bytes in sent.items()
    }
