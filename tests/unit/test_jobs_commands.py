"""``disagg-train status | stop | logs`` on jobs that were submitted."""

from dataclasses import replace

import pytest

from disagg_train import jobs_commands
from disagg_train.cli import main
from disagg_train.errors import SubmissionError
from disagg_train.submission.state import JobState
from tests.unit.submission.fake_server import ADDRESS, FakeServer

_RUNNING = JobState(
    "mine",
    "RUNNING",
    start_s=1000.0,
    metadata={"disagg_train": "1", "job": "digits", "grace_s": "25", "output": "/shared/d"},
    variables=["TEAM_SETTING"],
)
_STOPPED = replace(_RUNNING, status="STOPPED", end_s=1010.0)
_STEP = "step     2  loss 1.250  128 tokens/s\n"
_SAVED = "stopped after 4 steps; a checkpoint is saved\n"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    server = FakeServer([_STEP], [_RUNNING])
    monkeypatch.setattr(jobs_commands, "connect", lambda address: server)
    monkeypatch.setattr(jobs_commands, "_POLL_S", 0.0)
    return server


def test_the_list_has_our_jobs_and_no_others(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.states = [_RUNNING, JobState("somebody-elses", "RUNNING", start_s=1.0)]
    assert main(["status"]) == 0
    told = capsys.readouterr().out
    assert "mine" in told and "digits" in told
    assert "somebody-elses" not in told
    server.states = []
    assert main(["status"]) == 0
    assert f"no job was submitted to {ADDRESS}" in capsys.readouterr().out


def test_one_job_is_told_with_its_newest_step(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "mine"]) == 0
    told = capsys.readouterr().out
    assert "step      2  loss 1.250" in told
    assert "variables TEAM_SETTING" in told


def test_a_stop_waits_for_the_end_and_says_what_is_saved(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.pieces, server.states = [_STEP, _SAVED], [_RUNNING, _RUNNING, _STOPPED]
    assert main(["stop", "mine"]) == 0
    assert server.stopped == ["mine"]
    assert "a checkpoint after 4 steps is saved in /shared/d" in capsys.readouterr().out


def test_a_job_that_is_only_starting_is_told_until_it_hears(server: FakeServer) -> None:
    server.pieces, server.deaf_to = [], 2
    server.states = [replace(_RUNNING, status="PENDING")] * 3 + [_RUNNING, _RUNNING, _STOPPED]
    assert main(["stop", "mine"]) == 0
    assert server.stopped == ["mine"] * 3


def test_a_stop_that_lost_steps_is_a_failure(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.states = [_RUNNING, _STOPPED]
    assert main(["stop", "mine"]) == 1
    assert "its last state was not saved" in capsys.readouterr().out


def test_a_job_that_does_not_end_is_told_at_a_deadline(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jobs_commands, "_SLACK_S", -55.0)
    assert main(["stop", "mine"]) == 1
    assert "still RUNNING 0 s after it was told to end" in capsys.readouterr().err


def test_a_job_that_was_submitted_otherwise_is_told_and_not_waited_for(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.states = [replace(_RUNNING, metadata={})]
    assert main(["stop", "mine"]) == 0
    assert server.stopped == ["mine"]
    assert "asked job mine to end; see: disagg-train status mine" in capsys.readouterr().out


def test_a_job_that_is_over_is_not_stopped(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.states = [replace(_STOPPED, status="SUCCEEDED")]
    assert main(["stop", "mine"]) == 0
    assert "had ended before: SUCCEEDED" in capsys.readouterr().out
    assert server.stopped == []


def test_logs_are_printed_as_they_are(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.pieces = ["[bold]raw[/] ", "text\n"]
    assert main(["logs", "mine"]) == 0
    assert capsys.readouterr().out == "[bold]raw[/] text\n"


def test_logs_that_are_followed_end_with_the_jobs_exit_status(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.pieces = ["[bold]raw[/]\n"]
    server.states = [_RUNNING, replace(_STOPPED, status="FAILED", exit_code=5)]
    assert main(["logs", "mine", "--follow"]) == 5
    assert capsys.readouterr().out.startswith("[bold]raw[/]\n")


def test_a_server_that_cannot_be_reached_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(address: str) -> None:
        raise SubmissionError("no job server answers")

    monkeypatch.setattr(jobs_commands, "connect", refuse)
    assert main(["status", "--address", ADDRESS]) == 1
    assert capsys.readouterr().err == "SubmissionError: no job server answers\n"
