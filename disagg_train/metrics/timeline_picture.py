"""A step as a picture: a row per rank, a bar per forward and backward. Needs matplotlib."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

from disagg_train.metrics.pictures import new_figure
from disagg_train.metrics.records import RankReport, Span

_LANGUAGE = "language"
_IDLE, _INK = "#f1f1ee", "#222222"
_BAR, _HALF = 0.84, 0.5
_WIDTH, _SMALL, _LARGE = 10.0, 9, 11
"""Inches, and sizes of the letters: to be read at the width of a page."""
_CHARACTER = 0.0095
"""Width of a digit as a fraction of the picture."""
_LABEL, _ROW_OF_LEGEND = 27, 5
"""Letters in a line of a row's label, and entries in a line of the legend."""


@dataclass(frozen=True)
class _Look:
    """How bars of one sort are drawn: the second colour is for every other stage of a rank.

    ``place`` is the sort's in the legend.
    """

    place: int
    label: str
    colours: tuple[str, str]
    text: str = "white"


_LANGUAGE_LOOKS = {
    "forward": _Look(4, "LLM forward", ("#2f6db3", "#16406f")),
    "evaluate": _Look(5, "LLM evaluation", ("#2f6db3", "#16406f")),
    "backward": _Look(6, "LLM backward", ("#3a9a4b", "#1f5f2c")),
    "backward_input": _Look(7, "LLM backward, inputs", ("#3a9a4b", "#1f5f2c")),
    "backward_weight": _Look(8, "LLM backward, weights", ("#a8d672", "#82b34a"), _INK),
}
_ENCODER_LOOKS = {
    "forward": _Look(0, "encoder forward", ("#f6b24d", "#dd8f1d"), _INK),
    "run_ahead": _Look(1, "encoder forward of the next step", ("#fbdca8", "#f3c987"), _INK),
    "backward": _Look(2, "encoder backward", ("#c9503c", "#8f2f20")),
    "backward_input": _Look(2, "encoder backward, inputs", ("#c9503c", "#8f2f20")),
    "backward_weight": _Look(3, "encoder backward, weights", ("#eba798", "#d98775"), _INK),
}
_UPDATE = _Look(9, "gradient sync, update", ("#6b6b6b", "#6b6b6b"))


@dataclass(frozen=True)
class _Bar:
    """A span as it is drawn."""

    look: _Look
    colour: str
    text: str
    begin_s: float
    width_s: float


def draw_timeline(
    path: Path, reports: Sequence[RankReport], rows: Mapping[int, str], title: str
) -> None:
    """Draw one step.

    Args:
        path: of the PNG.
        reports: what each row's rank did in the step.
        rows: label of each rank's row.
        title: over the picture.
    """
    begin_s = min(span.begin_s for report in reports for span in report.spans)
    end_s = max(span.end_s for report in reports for span in report.spans)
    figure = new_figure(_WIDTH, 1.5 + 0.42 * len(reports))
    axes = figure.add_subplot()
    scale, unit = _unit(end_s - begin_s)
    bars = [list(_bars(report)) for report in reports]
    for row, of_row in enumerate(bars):
        axes.barh(row, (end_s - begin_s) * scale, height=_BAR, color=_IDLE, zorder=0)
        for bar in of_row:
            _draw(axes, row, bar, begin_s, scale, end_s - begin_s)
    labels = [fill(rows[report.place], _LABEL) for report in reports]
    axes.set_yticks(range(len(reports)), labels, fontsize=_SMALL)
    axes.set(xlabel=unit, xlim=(0, (end_s - begin_s) * scale), ylim=(len(reports) - _HALF, -_HALF))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.suptitle(title, fontsize=_LARGE)
    _add_legend(figure, [bar for of_row in bars for bar in of_row])
    figure.savefig(path, dpi=150)


def _bars(report: RankReport) -> Iterable[_Bar]:
    """Yield a rank's bars; waits and ops that take no time have none."""
    stages: dict[str, list[str]] = {}
    for span in report.spans:
        look = _look(span)
        if look is None or span.duration_s <= 0.0:
            continue
        module = span.subject.partition(".")[0]
        hosted = stages.setdefault(module, [])
        if span.subject not in hosted:
            hosted.append(span.subject)
        colour = look.colours[hosted.index(span.subject) % 2]
        text = span.name.split()[-1] if look is not _UPDATE else ""
        yield _Bar(look, colour, text, span.begin_s, span.duration_s)


def _look(span: Span) -> _Look | None:
    if span.category == "update":
        return _UPDATE
    looks = _LANGUAGE_LOOKS if span.subject.partition(".")[0] == _LANGUAGE else _ENCODER_LOOKS
    return looks.get(span.name.split()[0])


def _draw(axes: Any, row: int, bar: _Bar, origin_s: float, scale: float, length_s: float) -> None:
    left, width = (bar.begin_s - origin_s) * scale, bar.width_s * scale
    axes.barh(
        row, width, left=left, height=_BAR, align="center", color=bar.colour, ec="white", lw=0.4
    )
    if bar.width_s / length_s > _CHARACTER * len(bar.text) and bar.text:
        middle = left + width / 2
        axes.text(
            middle,
            row,
            bar.text,
            ha="center",
            va="center",
            fontsize=_SMALL,
            color=bar.look.text,
        )


def _unit(length_s: float) -> tuple[float, str]:
    """Return what to multiply seconds with, and the name of the unit."""
    return (1.0, "seconds") if length_s >= 1.0 else (1000.0, "milliseconds")


def _add_legend(figure: Any, bars: Sequence[_Bar]) -> None:
    from matplotlib.patches import Patch

    shown = sorted({bar.look for bar in bars}, key=lambda look: look.place)
    entries = [(look.colours[0], look.label) for look in shown]
    if dark := sorted({bar.colour for bar in bars} - {colour for colour, _ in entries}):
        entries.append((dark[0], "darker: every other stage of a rank"))
    handles = [Patch(facecolor=colour, label=label) for colour, label in entries]
    handles.append(Patch(facecolor=_IDLE, ec="#cccccc", label="idle or waiting"))
    columns = -(-len(handles) // 2) if len(handles) > _ROW_OF_LEGEND else len(handles)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=_SMALL
    )
