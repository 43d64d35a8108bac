"""How jobs are told to people, from what Ray knows and what their logs say."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from disagg_train.metrics.progress import TrainingProgress
from disagg_train.submission.log import LogReader, read_log
from disagg_train.submission.report import COLUMNS, conclusion, details, is_saved, rows, table
from disagg_train.submission.request import STOP_WAIT
from disagg_train.submission.state import JobState
from tests.unit.metrics.steps import record

_METADATA = {
    "disagg_train": "0.1.0",
    "job": "digits",
    "steps": "400",
    "output": "/shared/digits",
    "grace_s": "25",
}
_RUNNING = JobState("mine", "RUNNING", start_s=1000.0, metadata=_METADATA)
_STOPPED = replace(_RUNNING, status="STOPPED", end_s=1061.0)
_FAILED = replace(_RUNNING, status="FAILED", exit_code=3, end_s=1061.0)


def _printed(*steps: int) -> str:
    """Return what a driver prints that is not on a terminal."""
    out = io.StringIO()
    times = iter(range(0, 10_000, 100))
    with TrainingProgress(Console(file=out), 400, lambda: float(next(times))) as progress:
        for step in steps:
            progress.update(record(step - 1, 1.25), [])
    return out.getvalue()


def test_a_log_says_how_far_the_job_is_in_the_words_that_training_prints() -> None:
    log = read_log("starting 4 ranks\n" + _printed(3, 4, 39))
    assert log.step == 39
    assert log.numbers.startswith("loss 1.250")


def test_lines_come_whole_whatever_the_pieces_are() -> None:
    text = "starting\n" + _printed(3, 12) + "end without a newline"
    log, found = LogReader(), []
    for piece in (text[at : at + 7] for at in range(0, len(text), 7)):
        found += log.lines(piece)
    assert [*found, *log.end()] == text.split("\n")
    assert log.step == 12


def test_a_stop_that_saved_is_told_from_one_that_did_not() -> None:
    steps = _printed(3)
    saved = read_log(steps + "stopped after 17 steps; a checkpoint is saved\n")
    assert is_saved(saved)
    assert "a checkpoint after 17 steps is saved in /shared/digits" in conclusion(_STOPPED, saved)
    assert not is_saved(read_log(steps))
    assert "was not saved" in conclusion(_STOPPED, read_log(steps))
    assert is_saved(read_log("starting 4 ranks\n"))
    assert "nothing to save" in conclusion(_STOPPED, read_log("starting 4 ranks\n"))


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (replace(_RUNNING, status="SUCCEEDED", exit_code=0), 0),
        (_FAILED, 3),
        (replace(_FAILED, exit_code=-9), 137),
        (replace(_FAILED, exit_code=None), 1),
        (_STOPPED, 143),
    ],
)
def test_the_exit_status_is_the_jobs(state: JobState, status: int) -> None:
    assert state.exit_status == status


def test_a_failure_tells_its_exit_code_and_not_the_log_once_more() -> None:
    state = replace(_FAILED, message="last available logs: ...")
    assert conclusion(state, LogReader()) == "job mine failed with exit code 3"


def test_a_failure_before_the_driver_tells_what_ray_says() -> None:
    error = "RUNTIME_ENV_SETUP_FAILURE"
    state = replace(_FAILED, exit_code=None, error_type=error, message="no space left")
    assert conclusion(state, LogReader()) == "job mine failed: no space left"


@pytest.mark.parametrize(
    "line",
    [
        "/opt/venv/bin/python: Error while finding module specification for 'disagg_train.cli' "
        "(ModuleNotFoundError: No module named 'disagg_train')",
        "ModuleNotFoundError: No module named 'actors'",
        "/bin/sh: 1: python: not found",
    ],
)
def test_nodes_without_the_package_are_told_what_to_do(line: str) -> None:
    said = conclusion(_FAILED, read_log(line))
    assert "--with-package" in said and "every node" in said


def test_the_table_has_the_newest_job_first() -> None:
    older = replace(_FAILED, job_id="older", start_s=10.0, end_s=90_000.0)
    newest, last = rows([older, _RUNNING], now_s=1007.5)
    assert (
        dict(zip(COLUMNS, newest, strict=True)).items()
        >= {
            "id": "mine",
            "job": "digits",
            "status": "RUNNING",
            "exit": "",
            "ran for": "0:00:07",
        }.items()
    )
    assert last[0] == "older"
    assert last[3:] == ("3", last[4], "1 d 0:59:50")


def test_ids_stay_whole_in_the_table() -> None:
    job_id = "a-job-of-a-long-name-" * 5 + "20261122-102432-9d20"
    head, first, last = table([replace(_RUNNING, job_id=job_id), _FAILED], now_s=1007.5)
    assert first.split()[0] == job_id
    assert last.index("FAILED") == first.index("RUNNING") == head.index("status")


def test_one_job_is_told_with_its_step_and_the_names_of_its_variables() -> None:
    state = replace(_FAILED, message="went wrong", variables=["NCCL_DEBUG", "A", STOP_WAIT])
    told = dict(details(state, read_log(_printed(40)), 2000.0))
    assert told["status"] == "FAILED, exit code 3"
    assert told["step"].startswith("40 of 400  loss 1.250")
    assert told["variables"] == "A, NCCL_DEBUG"
    assert told["message"] == "went wrong"
    assert "ended" not in dict(details(_RUNNING, LogReader(), 2000.0))
