"""The commands on submitted jobs: ``disagg-train status | stop | logs``."""

import argparse
import time
from typing import TYPE_CHECKING

from disagg_train.errors import SubmissionError
from disagg_train.job_server import add_address, connect
from disagg_train.process_end import INTERRUPTED

if TYPE_CHECKING:
    from disagg_train.submission.state import JobServer, JobState

_POLL_S = 0.5
_SLACK_S = 30.0
"""On top of the time after which Ray kills a job that it was asked to stop."""
_NOT_SAVED = 1


def add_jobs_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands that take the id of a submitted job."""
    status = commands.add_parser("status", help="list submitted jobs, or say how one is")
    status.add_argument("job_id", nargs="?", metavar="ID", help="submission id of one job")
    status.set_defaults(run=_status)
    stop = commands.add_parser("stop", help="have a submitted job save and end")
    stop.set_defaults(run=_stop)
    logs = commands.add_parser("logs", help="print what a submitted job printed")
    logs.add_argument(
        "--follow",
        action="store_true",
        help="go on to the job's end, and return its exit status; Ctrl-C ends this, not the job",
    )
    logs.set_defaults(run=_logs)
    for command in (stop, logs):
        command.add_argument("job_id", metavar="ID", help="submission id of the job")
    for command in (status, stop, logs):
        add_address(command)


def _status(arguments: argparse.Namespace) -> int:
    server = connect(arguments.address)
    if arguments.job_id is None:
        _list(server)
    else:
        _describe(server, arguments.job_id)
    return 0


def _list(server: "JobServer") -> None:
    from disagg_train.submission.report import table

    ours = [state for state in server.jobs() if state.is_ours]
    if not ours:
        print(f"no job was submitted to {server.address} by disagg-train")
        return
    print("\n".join(table(ours, time.time())))


def _describe(server: "JobServer", job_id: str) -> None:
    from disagg_train.submission.log import read_log
    from disagg_train.submission.report import details

    state = server.job(job_id)
    for name, text in details(state, read_log(server.log(job_id)), time.time()):
        print(f"{name:<10}{text}")


def _logs(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from disagg_train.following import follow

    server = connect(arguments.address)
    if arguments.follow:
        return follow(server, arguments.job_id, Console())
    print(server.log(arguments.job_id), end="")
    return 0


def _stop(arguments: argparse.Namespace) -> int:
    from disagg_train.submission.log import read_log
    from disagg_train.submission.report import command, conclusion, is_saved

    server, job_id = connect(arguments.address), arguments.job_id
    state = server.job(job_id)
    if state.is_over:
        print(f"job {job_id} had ended before: {state.status}")
        return 0
    told = server.stop(job_id)
    if not state.is_ours:  # nobody knows how long it may take
        print(f"asked job {job_id} to end; see: {command('status', job_id, server.address)}")
        return 0
    print(f"asked job {job_id} to end its step and to save, for which it has {state.grace_s:g} s")
    try:
        state = _until_over(server, state, told)
    except KeyboardInterrupt:
        print("\nnot waited for; it is stopped all the same: ", end="")
        print(command("status", job_id, server.address))
        return INTERRUPTED
    log = read_log(server.log(job_id))
    print(conclusion(state, log))
    return 0 if state.status == "SUCCEEDED" or is_saved(log) else _NOT_SAVED


def _until_over(server: "JobServer", state: "JobState", told: bool) -> "JobState":
    """Wait until a job that was told to end has ended.

    Raises:
        SubmissionError: it does not, though Ray kills it after a while.
    """
    from disagg_train.submission.request import CLOSING_S

    wait_s = state.grace_s + CLOSING_S + _SLACK_S
    until_s = time.monotonic() + wait_s
    while not state.is_over:
        if time.monotonic() > until_s:
            raise SubmissionError(
                f"job {state.job_id} is still {state.status} {wait_s:g} s after it was told to "
                f"end; look at its log and at Ray's"
            )
        time.sleep(_POLL_S)
        told = told or server.stop(state.job_id)
        state = server.job(state.job_id)
    return state
