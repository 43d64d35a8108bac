"""Lines of progress: few in a terminal, which has a bar, and often enough where there is none."""

import io

import pytest
from rich.console import Console

from disagg_train.metrics.progress import TrainingProgress
from tests.unit.metrics.step_record import record_of


def _lines(seconds_per_step: float, terminal: bool, steps: int = 1000) -> list[int]:
    """Return after which steps a line was printed."""
    now_s, out, printed = 0.0, io.StringIO(), []
    console = Console(file=out, force_terminal=terminal)
    progress = TrainingProgress(console, steps, lambda: now_s)
    for step in range(steps):
        before = out.tell()
        progress.update(record_of(step), [])
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
