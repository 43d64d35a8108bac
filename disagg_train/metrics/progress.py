"""Live progress in a terminal: step, loss, tokens per second, time left."""

import time
from collections.abc import Callable, Sequence
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from disagg_train.metrics.records import Evaluation, StepRecord

_SMOOTHING = 0.9
_LINES, _SILENCE_S = 10, 30.0
_ESTIMATE_S = 600.0


class TrainingProgress:
    """A progress bar, and a line of text every tenth of the run.

    Args:
        console: where to draw; without a terminal only the lines are printed, and more of them:
            one at the first step, and every half minute at least.
        steps: of the run.
        clock: seconds, growing.
    """

    def __init__(
        self, console: Console, steps: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console, self._steps, self._clock = console, steps, clock
        self._said_s = float("-inf")
        self._bar = step_bar(console, shown=console.is_terminal)
        self._task = self._bar.add_task("train", total=steps, numbers="")
        self._tokens_per_s, self._evaluated = 0.0, 0

    def update(self, record: StepRecord, evaluations: Sequence[Evaluation]) -> None:
        """Show a step, and the evaluation after it if there was one."""
        new = record.tokens_per_s
        old = self._tokens_per_s or new
        self._tokens_per_s = _SMOOTHING * old + (1 - _SMOOTHING) * new
        numbers = f"loss {record.loss:.3f}  {self._tokens_per_s:,.0f} tokens/s"
        self._bar.update(self._task, completed=record.step + 1, numbers=numbers)
        if self._is_due(record.step + 1):
            self._said_s = self._clock()
            self._bar.console.print(f"step {record.step + 1:>5}  {numbers}", highlight=False)
        for evaluation in evaluations[self._evaluated :]:
            self._bar.console.print(
                f"held out after {evaluation.step} steps: loss {evaluation.loss:.3f}, "
                f"accuracy {evaluation.accuracy:.3f}, exact match {evaluation.exact_match:.3f}, "
                f"token F1 {evaluation.token_f1:.3f}",
                highlight=False,
                soft_wrap=True,
            )
        self._evaluated = len(evaluations)  # fewer than before, where a run went back

    def _is_due(self, steps_done: int) -> bool:
        silent_s = self._clock() - self._said_s
        is_long_silent = silent_s >= _SILENCE_S and not self._console.is_terminal
        is_tenth = steps_done % max(self._steps // _LINES, 1) == 0
        return is_tenth or is_long_silent or steps_done == self._steps

    def say(self, *texts: str) -> None:
        """Print lines above the bar."""
        for text in texts:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


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
