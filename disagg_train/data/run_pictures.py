"""The pictures that a run leaves: how it learned, and what its model read off images."""

from collections.abc import Sequence
from pathlib import Path

from disagg_train.data.source import DataSource
from disagg_train.metrics.pictures import Reading, draw_curve, draw_readings
from disagg_train.metrics.records import Evaluation, StepRecord

_READINGS = 10


def draw_run(
    folder: Path,
    records: Sequence[StepRecord],
    evaluations: Sequence[Evaluation],
    source: DataSource,
) -> list[str]:
    """Draw ``curve.png`` and, where images were read, ``predictions.png``.

    Returns:
        What people should know: why nothing was drawn.
    """
    try:
        draw_curve(folder / "curve.png", records, evaluations)
        readings = _readings(evaluations[-1], source) if evaluations else []
        if readings:
            draw_readings(folder / "predictions.png", readings)
    except ImportError:
        return ["no pictures were drawn: pip install 'disagg_train[demo]'"]
    return []


def _readings(evaluation: Evaluation, source: DataSource) -> list[Reading]:
    seen = []
    for answer in evaluation.answers:
        inputs = source.load(answer.key).inputs.values()
        images = [image for found in inputs for image in found if image.ndim == 3]
        if images:
            seen.append(Reading(images[0], answer.predicted, answer.true))
    return seen[:_READINGS]
