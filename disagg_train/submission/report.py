"""How the state and the end of jobs are told to people."""

import shlex
import time
from collections.abc import Iterable

from disagg_train.submission.log import LogReader
from disagg_train.submission.request import NAME, OUTPUT, STOP_WAIT
from disagg_train.submission.state import JobState

_ENTRYPOINT_FAILED = "JOB_ENTRYPOINT_COMMAND_ERROR"


def command(verb: str, job_id: str, address: str, *options: str) -> str:
    """Return a command on a job, to be typed as it is."""
    return shlex.join(["disagg-train", verb, job_id, "--address", address, *options])


def conclusion(state: JobState, log: LogReader) -> str:
    """Return how a job ended, and what to do where that is known."""
    if state.status == "SUCCEEDED":
        return f"job {state.job_id} succeeded"
    if state.status == "STOPPED":
        return f"job {state.job_id} was stopped; {_what_is_kept(state, log)}"
    said = f"job {state.job_id} failed"
    if state.exit_code is not None:
        said += f" with exit code {state.exit_status}"
    elif state.error_type != _ENTRYPOINT_FAILED:
        said += f": {state.message}"
    if log.lacks_package:
        said += (
            "\na node of the cluster lacks disagg_train: install it, with what it needs, in the "
            "Python that runs `ray start` on every node, or upload it with --with-package"
        )
    return said


def _what_is_kept(state: JobState, log: LogReader) -> str:
    if log.saved_after is not None:
        where = state.metadata.get(OUTPUT, "its output")
        return f"a checkpoint after {log.saved_after} steps is saved in {where}"
    if not log.step:
        return "no step was done, so there was nothing to save"
    return "its last state was not saved; it goes on from its newest checkpoint, if it has one"


def is_saved(log: LogReader) -> bool:
    """Whether a stopped job lost nothing."""
    return log.saved_after is not None or not log.step


COLUMNS = ("id", "job", "status", "exit", "started", "ran for")


def rows(states: Iterable[JobState], now_s: float) -> list[tuple[str, ...]]:
    """Return a row of ``COLUMNS`` per job, the newest first."""
    newest = sorted(states, key=lambda state: state.start_s or 0.0, reverse=True)
    return [
        (
            state.job_id,
            state.metadata.get(NAME, ""),
            state.status,
            "" if state.exit_code is None else str(state.exit_status),
            _moment(state.start_s),
            _duration(state, now_s),
        )
        for state in newest
    ]


def table(states: Iterable[JobState], now_s: float) -> list[str]:
    """Return the lines of a table of jobs; ids stay whole, however narrow a terminal is."""
    cells = [COLUMNS, *rows(states, now_s)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def details(state: JobState, log: LogReader, now_s: float) -> list[tuple[str, str]]:
    """Return what is known of one job, with a name for each; no value of a variable."""
    exit_code = "" if state.exit_code is None else f", exit code {state.exit_status}"
    of = f" of {state.steps}" if state.steps else ""
    found = [
        ("job", state.metadata.get(NAME, "")),
        ("status", state.status + exit_code),
        ("step", f"{log.step}{of}  {log.numbers}" if log.step else ""),
        ("started", _moment(state.start_s)),
        ("ended", _moment(state.end_s)),
        ("ran for", _duration(state, now_s)),
        ("output", state.metadata.get(OUTPUT, "")),
        ("variables", ", ".join(sorted(set(state.variables) - {STOP_WAIT}))),
        ("message", state.message),
    ]
    return [(name, text) for name, text in found if text]


def _moment(moment_s: float | None) -> str:
    if moment_s is None:
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment_s))


def _duration(state: JobState, now_s: float) -> str:
    if state.start_s is None:
        return ""
    seconds = max(0, int((state.end_s or now_s) - state.start_s))
    days, seconds = divmod(seconds, 86400)
    clock = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{days} d {clock}" if days else clock
