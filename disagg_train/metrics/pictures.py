"""Pictures of a run: its curve, and what it read off some images. Needs matplotlib."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from disagg_train.metrics.records import Evaluation, StepRecord

_INK, _RIGHT, _WRONG = "#1f4e79", "#2e7d32", "#c62828"


@dataclass(frozen=True)
class Reading:
    """An image with what the model read off it and what is written there."""

    image: NDArray[np.float32]
    predicted: str
    true: str


def draw_curve(
    path: Path, records: Sequence[StepRecord], evaluations: Sequence[Evaluation]
) -> None:
    """Draw the training loss, and the held-out loss and accuracy, over the steps."""
    figure, axes = _new_figure(7.0, 3.8)
    axes.plot(
        [r.step for r in records],
        [r.loss for r in records],
        color=_INK,
        lw=0.8,
        label="training loss",
    )
    axes.set(xlabel="step", ylabel="loss per target token")
    if evaluations:
        steps = [evaluation.step for evaluation in evaluations]
        axes.plot(steps, [e.loss for e in evaluations], "o-", color=_WRONG, label="held-out loss")
        right = axes.twinx()
        right.plot(
            steps, [e.accuracy for e in evaluations], "s--", color=_RIGHT, label="held-out accuracy"
        )
        right.set(ylabel="held-out accuracy per character", ylim=(0, 1.02))
        right.spines["top"].set_visible(False)
        right.legend(loc="center right", frameon=False)
    axes.legend(loc="upper right", frameon=False)
    figure.savefig(path, dpi=150)


def draw_readings(path: Path, readings: Sequence[Reading]) -> None:
    """Draw images with the prediction under each, green where it is right."""
    figure, _ = _new_figure(7.0, 0.75 * len(readings) + 0.2, axes=False)
    for row, reading in enumerate(readings):
        axes = figure.add_subplot(len(readings), 2, 2 * row + 1)
        axes.imshow(reading.image[:, :, 0], cmap="gray_r", aspect="equal")
        axes.set_anchor("W")
        axes.axis("off")
        axes = figure.add_subplot(len(readings), 2, 2 * row + 2)
        axes.axis("off")
        right = reading.predicted == reading.true
        verdict = reading.predicted if right else f"{reading.predicted}   (true: {reading.true})"
        axes.text(
            0.0,
            0.5,
            verdict,
            color=_RIGHT if right else _WRONG,
            va="center",
            family="monospace",
            fontsize=12,
        )
    figure.savefig(path, dpi=150)


def _new_figure(width: float, height: float, axes: bool = True) -> tuple[Any, Any]:
    """Make a figure that needs no display and leaves pyplot's state alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    if not axes:
        return figure, None
    plot = figure.add_subplot()
    plot.spines["top"].set_visible(False)
    return figure, plot
