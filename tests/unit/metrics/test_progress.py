"""Progress in a terminal is lines and a bar; in a notebook's cell, one output that is replaced."""

import io
from typing import Any

import pytest
from rich.console import Console

from disagg_train.metrics.progress import CellProgress, TrainingProgress, progress_on
from disagg_train.metrics.records import Evaluation
from tests.unit.metrics.steps import record

_STEPS = 20


class _Output:
    """What a cell shows."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def update(self, thing: Any) -> None:
        self.shown.append(thing._repr_mimebundle_((), ())["text/html"])


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> _Output:
    import IPython.display

    output = _Output()

    def display(thing: Any, display_id: bool) -> _Output:
        assert display_id
        output.update(thing)
        return output

    monkeypatch.setattr(IPython.display, "display", display)
    return output


def _notebook() -> Console:
    return Console(force_jupyter=True, file=io.StringIO())


def test_a_cell_shows_the_last_step_and_what_was_said(cell: _Output) -> None:
    with progress_on(_notebook(), _STEPS) as progress:
        progress.say("starting 2 ranks")
        for step in range(_STEPS):
            progress.update(record(step, 1.25), [])
    last = cell.shown[-1]
    assert "starting 2 ranks" in last
    assert f"{_STEPS}/{_STEPS}" in last
    assert "loss 1.250" in last


def test_a_cell_is_not_drawn_for_every_step(cell: _Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disagg_train.metrics.progress.time.monotonic", lambda: 100.0)
    with CellProgress(_notebook(), 100_000) as progress:
        for step in range(50):
            progress.update(record(step, 1.25), [])
    assert len(cell.shown) == 3


def test_a_cell_shows_text_as_it_is(cell: _Output) -> None:
    with progress_on(_notebook(), _STEPS) as progress:
        progress.say("[red]<b>node</b>[/]")
    assert "[red]&lt;b&gt;node&lt;/b&gt;[/]" in cell.shown[-1]


def test_a_terminal_gets_lines() -> None:
    console = Console(file=io.StringIO(), force_terminal=False, width=200)
    with progress_on(console, _STEPS) as progress:
        assert type(progress) is TrainingProgress
        for step in range(_STEPS):
            progress.update(record(step, 1.25), [Evaluation(20, 2.5, 0.5, 0.5, 0.5)][: step // 19])
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "step    20  loss 1.250" in printed
    assert "held out after 20 steps: loss 2.500" in printed


def test_the_time_left_of_a_resumed_run_is_that_of_its_own_steps() -> None:
    progress = TrainingProgress(_notebook(), 1000)
    for step in (900, 901):
        progress.update(record(step, 1.25), [])
    (task,) = progress._bar.tasks
    assert (task.completed, task.remaining) == (902, 98)
    assert sum(sample.completed for sample in task._progress) == 2


def _lines(seconds_per_step: float, terminal: bool, steps: int = 1000) -> list[int]:
    """Return after which steps a line was printed."""
    now_s, out, printed = 0.0, io.StringIO(), []
    console = Console(file=out, force_terminal=terminal)
    progress = TrainingProgress(console, steps, lambda: now_s)
    for step in range(steps):
        before = out.tell()
        progress.update(record(step), [])
        printed += [step + 1] if out.tell() > before else []
        now_s += seconds_per_step
    return printed


@pytest.mark.parametrize("terminal", [True, False])
def test_a_quick_run_prints_every_tenth(terminal: bool) -> None:
    tenths = list(range(100, 1001, 100))
    assert _lines(0.01, terminal) == (tenths if terminal else [1, *tenths])


def test_a_slow_run_without_a_terminal_prints_every_half_minute() -> None:
    printed = _lines(7.0, terminal=False)
    assert max(b - a for a, b in zip(printed, printed[1:], strict=False)) == 5
    assert _lines(7.0, terminal=True) == list(range(100, 1001, 100))


def test_the_last_step_is_always_printed() -> None:
    assert _lines(0.01, terminal=True, steps=23) == [*range(2, 23, 2), 23]
