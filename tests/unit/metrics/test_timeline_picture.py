"""A step as trace and as picture."""

from pathlib import Path

import pytest

from disagg_train.errors import DataError
from disagg_train.metrics.records import RankReport, Span
from disagg_train.metrics.timeline_picture import draw_timeline
from disagg_train.metrics.trace import START_STEP, read_trace, write_trace

ROWS = {0: "rank 0: vision", 1: "rank 1: language"}


def step(begin_s: float) -> list[RankReport]:
    """Return a step of two ranks, in which the LLM runs two stages and an update."""

    def span(name: str, category: str, at_s: float) -> Span:
        subject = "" if name == START_STEP else " ".join(name.split()[1:2])
        return Span(name, subject, category, begin_s + at_s, begin_s + at_s + 0.5)

    vision = [
        span(START_STEP, "update", 0.0),
        span("forward vision 0", "forward", 1.0),
        span("send_forward vision->language 0", "boundary", 2.0),
    ]
    language = [
        span(START_STEP, "update", 0.0),
        span("recv_forward vision->language 0", "boundary", 2.0),
        span("forward language.0 0", "forward", 3.0),
        span("backward_weight language.2 0", "backward", 4.0),
        span("agree", "update", 5.0),
    ]
    return [RankReport(0, spans=vision), RankReport(1, spans=language)]


def test_a_written_trace_is_read_as_the_same_steps(tmp_path: Path) -> None:
    steps = [step(0.0), step(16.0)]
    write_trace(tmp_path / "trace.json", steps, ROWS)
    assert read_trace(tmp_path / "trace.json") == steps


@pytest.mark.parametrize("content", [None, "no json", "[]", '{"traceEvents": [{}]}'])
def test_what_is_no_trace_is_refused_by_its_path(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "trace.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=r"trace\.json is no trace of a run.*trace_steps"):
        read_trace(path)


def test_a_step_is_drawn_as_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_timeline(tmp_path / "step.png", step(100.0), ROWS, "a step")
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")
