"""``disagg-train submit``: what is sent, what is refused before, and what the user is told."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from disagg_train import submit_command
from disagg_train.cli import main
from disagg_train.submission.state import JobState
from tests.unit.config.jobs import JOB
from tests.unit.submission.fake_server import ADDRESS, FakeServer

_OUTPUT = ("--set", "output=/shared/digits")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    server = FakeServer()
    monkeypatch.setattr(submit_command, "connect", lambda address: server)
    return server


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a user's, where the command is started."""
    monkeypatch.chdir(tmp_path)
    for name in ("mine/encoder.py", "mine/__init__.py", "notes.txt", ".git/HEAD"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(dict(JOB)))
    return tmp_path


def _submit(*options: str) -> int:
    return main(["submit", "job.yaml", *_OUTPUT, *options])


def test_the_job_is_sent_with_its_overrides_and_the_user_is_told_what_to_type(
    server: FakeServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _submit("--set", "train.steps=7", "--submission-id", "mine") == 0
    (request,) = server.requests
    sent = yaml.safe_load(server.archived.pop("disagg-train-job.yaml"))
    assert (sent["train"]["steps"], sent["output"]) == (7, "/shared/digits")
    assert server.archived == {}
    assert request.job_id == "mine"
    told = capsys.readouterr().out
    for verb in ("logs mine", "status mine", "stop mine"):
        assert f"disagg-train {verb} --address {ADDRESS}" in told


_OWN_CLASS = "data.kind=mine.encoder:Mine"


@pytest.mark.parametrize("options", [("--set", _OWN_CLASS), ("--working-dir", ".")])
def test_the_folder_goes_along_where_it_is_needed(
    options: tuple[str, str], server: FakeServer, folder: Path
) -> None:
    assert _submit(*options) == 0
    assert set(server.archived) == {
        "disagg-train-job.yaml",
        "job.yaml",
        "mine/__init__.py",
        "mine/encoder.py",
        "notes.txt",
    }


def test_a_class_that_is_left_out_of_the_upload_is_told(
    server: FakeServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _submit("--set", _OWN_CLASS, "--exclude", "encoder.py") == 1
    assert "mine/encoder.py is not among the files" in capsys.readouterr().err
    assert server.requests == []


def test_an_installed_class_uploads_nothing_and_says_so(
    server: FakeServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _submit("--set", "data.kind=elsewhere:Source") == 0
    assert set(server.archived) == {"disagg-train-job.yaml"}
    assert "elsewhere:Source is not in" in capsys.readouterr().out


def test_the_package_goes_along_if_asked_for(server: FakeServer, folder: Path) -> None:
    assert _submit("--with-package") == 0
    assert {"disagg_train/cli.py", "actors/worker.py"} <= set(server.archived)
    assert not any("__pycache__" in name for name in server.archived)


def test_a_schedule_of_ones_own_goes_along(server: FakeServer, folder: Path) -> None:
    (folder / "order.yaml").write_text("name: mine")
    assert _submit("--set", "train.schedule=order.yaml") == 0
    assert server.archived["disagg-train-schedule.yaml"] == b"name: mine"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--set", "train.steps=0"), "train.steps"),
        (("--set", "output=runs/a"), "output is 'runs/a'"),
        (("--env", "NOT_THERE"), "no such variable"),
        (("--submission-id", "a/b"), "is no id"),
        (("--working-dir", "nowhere"), "there is no folder"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(
    options: tuple[str, str],
    said: str,
    server: FakeServer,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _submit(*options) == 1
    assert said in capsys.readouterr().err
    assert server.requests == []


def test_two_jobs_do_not_write_to_one_output(
    server: FakeServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = {"disagg_train": "1", "output": "/shared/digits"}
    server.states = [JobState("first", "RUNNING", metadata=metadata)]
    assert _submit() == 1
    assert "job first is RUNNING and writes to the same output" in capsys.readouterr().err
    assert server.requests == []
    server.states = [JobState("first", "STOPPED", metadata=metadata)]
    assert _submit() == 0


def test_values_of_variables_are_sent_and_never_printed(
    server: FakeServer,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TEAM_SETTING", "quite-private")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a1B2" * 8)
    assert _submit("--env", "TEAM_SETTING") == 0
    assert server.requests[0].environment["TEAM_SETTING"] == "quite-private"
    assert _submit("--env", "HF_TOKEN") == 1
    printed = capsys.readouterr()
    assert "quite-private" not in printed.out + printed.err
    assert "a1B2" not in printed.out + printed.err
    assert "HF_TOKEN looks like a secret" in printed.err


_STEP = "step     2  loss 1.250  128 tokens/s\n"


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        ({"status": "SUCCEEDED", "exit_code": 0}, 0, "succeeded"),
        ({"status": "FAILED", "exit_code": 3}, 3, "failed with exit code 3"),
        ({"status": "STOPPED"}, 143, "was stopped; its last state was not saved"),
    ],
)
def test_following_prints_the_log_and_returns_the_jobs_exit_status(
    end: dict[str, Any],
    status: int,
    said: str,
    server: FakeServer,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.pieces = ["starting\nst", _STEP[2:], "the end"]
    server.states = [JobState("", "RUNNING"), JobState("", **end)]
    assert _submit("--follow") == status
    told = capsys.readouterr().out
    assert f"starting\n{_STEP}the end\n" in told
    assert said in told


def test_ctrl_c_ends_the_following_and_not_the_job(
    server: FakeServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.pieces, server.interrupts_after = ["starting\n", _STEP], 1
    server.states = [JobState("", "RUNNING")]
    assert _submit("--follow", "--name", "mine") == 130
    told = capsys.readouterr().out
    assert "the job goes on" in told
    assert f"disagg-train stop mine --address {ADDRESS}" in told
    assert server.stopped == []
