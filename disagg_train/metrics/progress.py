"""Live progress in a terminal or a notebook's cell: step, loss, tokens per second, time left."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.jupyter import JupyterMixin
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from disagg_train.metrics.records import Evaluation, StepRecord

_SMOOTHING = 0.9
_LINES, _SILENCE_S = 10, 30.0
_MOST_LINES = 100
_REDRAW_S = 0.1
_ESTIMATE_S = 600.0


class TrainingProgress:
    """A progress bar, and a line of text every tenth of the run.

    Args:
        console: where to draw; where it can't show a bar, only the lines are printed, and more of
            them: one at the first step, and every half minute at least.
        steps: of the run.
        clock: seconds, growing.
    """

    def __init__(
        self, console: Console, steps: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._steps, self._clock = steps, clock
        self._shows_bar = console.is_terminal or console.is_jupyter
        self._said_s = float("-inf")
        self._bar = step_bar(console, shown=console.is_terminal)
        self._task = self._bar.add_task("train", total=steps, numbers="")
        self._tokens_per_s, self._evaluated = 0.0, 0

    def update(self, record: StepRecord, evaluations: Sequence[Evaluation]) -> None:
        """Show a step, and the evaluation after it if there was one."""
        new = record.tokens_per_s
        if not self._tokens_per_s:  # a resumed run begins in the middle, with nothing done yet
            self._bar.reset(self._task, completed=record.step)
        old = self._tokens_per_s or new
        self._tokens_per_s = _SMOOTHING * old + (1 - _SMOOTHING) * new
        numbers = f"loss {record.loss:.3f}  {self._tokens_per_s:,.0f} tokens/s"
        self._bar.update(self._task, completed=record.step + 1, numbers=numbers)
        if self._is_due(record.step + 1):
            self._said_s = self._clock()
            self.say(f"step {record.step + 1:>5}  {numbers}")
        for evaluation in evaluations[self._evaluated :]:
            self.say(
                f"held out after {evaluation.step} steps: loss {evaluation.loss:.3f}, "
                f"accuracy {evaluation.accuracy:.3f}, exact match {evaluation.exact_match:.3f}, "
                f"token F1 {evaluation.token_f1:.3f}"
            )
        self._evaluated = len(evaluations)  # fewer than before, where a run went back

    def _is_due(self, steps_done: int) -> bool:
        is_long_silent = self._clock() - self._said_s >= _SILENCE_S and not self._shows_bar
        is_tenth = steps_done % max(self._steps // _LINES, 1) == 0
        return is_tenth or is_long_silent or steps_done == self._steps

    def say(self, *texts: str) -> None:
        """Print lines above the bar."""
        for text in texts:
            self._bar.console.print(
                text, markup=False, emoji=False, highlight=False, soft_wrap=True
            )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


class CellProgress(TrainingProgress, JupyterMixin):
    """The same in one output of a notebook's cell, which is replaced as the run goes on.

    Nothing is drawn from another thread, and no widgets are needed: what was drawn last stays in
    the notebook's file.

    Args:
        console: for the bar.
        steps: of the run.
    """

    def __init__(self, console: Console, steps: int) -> None:
        super().__init__(console, steps)
        self._lines: deque[str] = deque(maxlen=_MOST_LINES)
        self._output: Any = None
        self._drawn_s = 0.0

    def __rich__(self) -> RenderableType:
        return Group(*(Text(line) for line in self._lines), self._bar.get_renderable())

    def update(self, record: StepRecord, evaluations: Sequence[Evaluation]) -> None:
        """Show a step, and the evaluation after it if there was one."""
        super().update(record, evaluations)
        if time.monotonic() > self._drawn_s + _REDRAW_S:
            self._draw()

    def say(self, *texts: str) -> None:
        """Show lines above the bar."""
        self._lines.extend(texts)
        self._draw()

    def _draw(self) -> None:
        if self._output is not None:
            self._output.update(self)
            self._drawn_s = time.monotonic()

    def __enter__(self) -> Self:
        from IPython.display import display

        self._output = display(self, display_id=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._draw()


def progress_on(console: Console, steps: int) -> TrainingProgress:
    """Return progress for where people are: a notebook's cell, or a terminal."""
    kind = CellProgress if console.is_jupyter else TrainingProgress
    return kind(console, steps)


def step_bar(console: Console, shown: bool) -> Progress:
    """Return a bar of steps; its tasks have a field ``numbers``, a text.

    Args:
        console: where to draw.
        shown: draw it; lines may be printed above it either way.
    """
    return Progress(
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not shown,
        speed_estimate_period=_ESTIMATE_S,
    )
