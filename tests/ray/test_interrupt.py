"""Ctrl-C and SIGTERM end a run cleanly: an exit status, and no process left behind."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.ray.jobs import job_with

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_START_S, _STOP_S = 240.0, 60.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, since Ray puts sockets below it."""
    with tempfile.TemporaryDirectory(prefix="dt-", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)


def _start(folder: Path) -> "subprocess.Popen[bytes]":
    job = job_with("train.steps=100000", f"output={folder}/run")
    (folder / "job.yaml").write_text(yaml.safe_dump(job.model_dump(mode="json")))
    command = [sys.executable, "-m", "disagg_train.cli", "train", str(folder / "job.yaml")]
    return subprocess.Popen(
        command, env=os.environ | {"TMPDIR": str(folder)}, preexec_fn=_as_from_a_terminal
    )


def _as_from_a_terminal() -> None:
    """Let SIGINT through: a shell's background jobs, as CI may be one, start with it ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _wait_for_a_step(run: "subprocess.Popen[bytes]", metrics: Path) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        assert run.poll() is None, "the run ended by itself"
        if metrics.exists() and metrics.read_text().count("\n") >= 2:
            return
        time.sleep(0.2)
    raise AssertionError("no step was done in time")


def _processes_of(folder: Path) -> list[int]:
    """Return live processes that were started with the run's TMPDIR, this one aside."""
    mark = f"TMPDIR={folder}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            alive = " Z " not in (process / "stat").read_text()
            if alive and mark in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_and_leaves_nothing_behind(
    folder: Path, number: int, status: int
) -> None:
    run = _start(folder)
    try:
        _wait_for_a_step(run, folder / "run" / "metrics.jsonl")
        assert len(_processes_of(folder)) > 4
        run.send_signal(number)
        assert run.wait(timeout=_STOP_S) == status
        until = time.monotonic() + _STOP_S
        while (left := _processes_of(folder)) and time.monotonic() < until:
            time.sleep(0.2)
        assert left == []
    finally:
        run.kill()
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert all("loss" in json.loads(line) for line in lines)
