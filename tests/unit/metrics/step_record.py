"""A step's record, where only its number matters."""

from disagg_train.metrics.records import StepRecord


def record_of(step: int) -> StepRecord:
    return StepRecord(
        step=step,
        loss=1.25,
        grad_norm=1.0,
        lr=1e-3,
        num_target_tokens=8,
        num_tokens=64,
        step_time_s=0.5,
        skipped=False,
        peak_boundary_bytes=0,
        peak_activation_bytes=0,
        modules={},
    )
