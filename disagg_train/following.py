"""Follow a job on a cluster from a terminal: its log, a bar, how it ended."""

from typing import Self

from rich.console import Console

from disagg_train.metrics.progress import step_bar
from disagg_train.process_end import INTERRUPTED
from disagg_train.submission.log import LogReader
from disagg_train.submission.report import command, conclusion
from disagg_train.submission.state import JobServer


def follow(server: JobServer, job_id: str, console: Console) -> int:
    """Print a job's log as it grows, and return the job's exit status at its end.

    Ctrl-C ends this alone.

    Args:
        server: that has the job.
        job_id: the job.
        console: where to print; a bar is drawn where it is a terminal.

    Raises:
        SubmissionError: the server is lost.
    """
    log = LogReader()
    try:
        with _Shown(console, server.job(job_id).steps) as shown:
            for text in server.follow(job_id):
                shown.lines(log.lines(text))
                shown.progress(log)
            shown.lines(log.end())
        state = server.job(job_id)
    except KeyboardInterrupt:
        say(
            console,
            f"\nnot followed any more; the job goes on\n"
            f"  follow it again: {command('logs', job_id, server.address, '--follow')}\n"
            f"  stop it, saving: {command('stop', job_id, server.address)}",
        )
        return INTERRUPTED
    say(console, conclusion(state, log))
    return state.exit_status


def say(console: Console, text: str) -> None:
    """Print a text as it is."""
    console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)


class _Shown:
    """Lines of a log, above a bar in a terminal.

    Args:
        console: where to print.
        steps: of the job, where known.
    """

    def __init__(self, console: Console, steps: int | None) -> None:
        self._bar = step_bar(console, shown=console.is_terminal and steps is not None)
        self._task = self._bar.add_task("train", total=steps, numbers="")
        self._first = 0

    def lines(self, lines: list[str]) -> None:
        for line in lines:
            say(self._bar.console, line)

    def progress(self, log: LogReader) -> None:
        if log.step and not self._first:  # what a resumed job had done says nothing of its speed
            self._first = log.step
            self._bar.reset(self._task, completed=log.step, numbers=log.numbers)
        self._bar.update(self._task, completed=log.step, numbers=log.numbers)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
