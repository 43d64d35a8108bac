"""Curves over the steps of a run, thinned so that any run makes a small page."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from disagg_train.metrics.records import Evaluation, StepRecord

MOST_POINTS = 1200

Value = float | None
"""A number; None where it is not finite, since JSON has no other word for it."""


@dataclass(frozen=True)
class Curve:
    """A line in a chart.

    Args:
        name: in the legend.
        steps: of the points.
        values: at these.
    """

    name: str
    steps: Sequence[int]
    values: Sequence[Value]

    def sample(self, most: int = 12) -> list[tuple[int, Value]]:
        """Return some points for a table: the first, the last, and evenly between."""
        last = len(self.steps) - 1
        chosen = sorted(
            {round(last * part / (most - 1)) for part in range(most)} if last >= 0 else ()
        )
        return [(self.steps[index], self.values[index]) for index in chosen]


@dataclass(frozen=True)
class Chart:
    """Curves with one axis.

    Args:
        title: over the chart.
        unit: of its values.
        curves: drawn in it.
        from_zero: whether the axis begins at zero.
    """

    title: str
    unit: str
    curves: Sequence[Curve]
    from_zero: bool = False


def charts(records: Sequence[StepRecord], evaluations: Sequence[Evaluation]) -> list[Chart]:
    """Return the curves of a run: loss, gradient norm, throughput, step time."""
    steps = [record.step for record in records]
    held_out = Curve(
        "held out",
        [evaluation.step for evaluation in evaluations],
        [_finite(evaluation.loss) for evaluation in evaluations],
    )

    def curve(name: str, values: Sequence[float]) -> Curve:
        return thinned(Curve(name, steps, [_finite(value) for value in values]))

    losses = [curve("training", [record.loss for record in records])]
    norms = [curve("gradient norm", [record.grad_norm for record in records])]
    speeds = [curve("tokens per second", [record.tokens_per_s for record in records])]
    times = [curve("step time", [record.step_time_s for record in records])]
    return [
        Chart("Loss", "per target token", losses + [held_out] * bool(evaluations)),
        Chart("Gradient norm", "over all modules", norms),
        Chart("Throughput", "LLM tokens per second", speeds, from_zero=True),
        Chart("Step time", "seconds", times, from_zero=True),
    ]


def _finite(value: float) -> Value:
    return float(f"{value:.6g}") if isfinite(value) else None


def thinned(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """Return a curve with at most so many points: of each stretch the lowest and the highest."""
    count = len(curve.steps)
    if count <= most:
        return curve

    def height(index: int) -> float:
        return curve.values[index] or 0.0

    parts, kept = most // 2, []
    for part in range(parts):
        stretch = range(count * part // parts, count * (part + 1) // parts)
        known = [i for i in stretch if curve.values[i] is not None]
        if known:
            kept += sorted({min(known, key=height), max(known, key=height)})
        else:
            kept.append(stretch[0])
    return Curve(curve.name, [curve.steps[i] for i in kept], [curve.values[i] for i in kept])
