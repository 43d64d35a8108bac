"""Pictures of a run: its curve, and what it read off some images. Needs matplotlib."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from disagg_train.metrics.records import Evaluation, StepRecord

_LONGEST = 60
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
    figure = new_figure(7.0, 3.8)
    axes = figure.add_subplot()
    axes.spines["top"].set_visible(False)
    steps, losses = [r.step for r in records], [r.loss for r in records]
    axes.plot(steps, losses, color=_INK, lw=0.8, label="training loss")
    axes.set(xlabel="step", ylabel="loss per target token")
    if evaluations:
        _draw_evaluations(axes, evaluations)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)


def _draw_evaluations(axes: Any, evaluations: Sequence[Evaluation]) -> None:
    steps = [evaluation.step for evaluation in evaluations]
    losses = [evaluation.loss for evaluation in evaluations]
    accuracies = [evaluation.accuracy for evaluation in evaluations]
    axes.plot(steps, losses, "o-", ms=4, color=_WRONG, label="held-out loss")
    right = axes.twinx()
    right.plot(steps, accuracies, "s--", ms=4, color=_RIGHT, label="held-out accuracy")
    right.set(ylabel="held-out accuracy per character", ylim=(0, 1.02))
    right.spines["top"].set_visible(False)


def draw_readings(path: Path, readings: Sequence[Reading]) -> None:
    """Draw images, all at one scale, with the prediction beside each; green where right."""
    figure = new_figure(7.0, 0.45 * len(readings) + 0.2)
    widest = max(reading.image.shape[1] for reading in readings)
    for row, reading in enumerate(readings):
        axes = figure.add_subplot(len(readings), 2, 2 * row + 1)
        axes.imshow(_visible(reading.image), cmap="gray_r", aspect="equal")
        axes.set_xlim(0, widest)
        axes.axis("off")
        axes = figure.add_subplot(len(readings), 2, 2 * row + 2)
        axes.axis("off")
        right = reading.predicted == reading.true
        predicted, true = _short(reading.predicted), _short(reading.true)
        verdict = predicted if right else f"{predicted}  (true {true})"
        style: dict[str, Any] = {"family": "monospace", "fontsize": 11, "parse_math": False}
        axes.text(0.0, 0.5, verdict, color=_RIGHT if right else _WRONG, va="center", **style)
    figure.savefig(path, dpi=150)


def _visible(image_HWC: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an image as it can be drawn: colours that an encoder normed, between 0 and 1."""
    if image_HWC.shape[2] != 3:
        return image_HWC[:, :, 0]
    low, high = float(image_HWC.min()), float(image_HWC.max())
    return (image_HWC - low) / max(high - low, 1e-6)


def _short(text: str) -> str:
    line = "".join(
        c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split())
    )
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def new_figure(width: float, height: float) -> Any:
    """Make a figure that needs no display and leaves pyplot's state alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
