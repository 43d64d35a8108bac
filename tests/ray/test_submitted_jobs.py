"""Jobs on a real Ray cluster of three nodes, with a token: submitted, followed, stopped, resumed.

The head has no room for ranks, and each of the other nodes for one, of the group that it is for.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.parity.jobs import small_job
from tests.ray.ray_head import ray_head

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_COMMAND_S, _STEP_S = 240.0, 200.0
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Head:
    """A head, and how a user of it is set up."""

    address: str
    folder: Path
    environment: dict[str, str]

    @property
    def run(self) -> Path:
        """Output folder of the jobs."""
        return self.folder / "run"

    def start(self, verb: str, *arguments: str, **changes: str) -> "subprocess.Popen[str]":
        """Start a command as a user does."""
        command = [sys.executable, "-m", "disagg_train.cli", verb, *arguments]
        return subprocess.Popen(
            [*command, "--address", self.address],
            cwd=self.folder,
            env=self.environment | changes,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=_as_from_a_terminal,
        )

    def do(self, verb: str, *arguments: str, **changes: str) -> tuple[int, str]:
        """Run a command to its end; return its exit status and what it printed."""
        command = self.start(verb, *arguments, **changes)
        printed, _ = command.communicate(timeout=_COMMAND_S)
        return command.returncode, printed


def _as_from_a_terminal() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(_ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(24),
        }
        job = small_job({}, {}, steps=100_000).model_dump(mode="json")
        job["output"] = str(folder / "run")
        for name, group in job["groups"].items():
            group["labels"] = {"pool": name}
        (folder / "job.yaml").write_text(yaml.safe_dump(job))
        with ray_head(folder, 0, environment, pools=tuple(job["groups"])) as address:
            yield Head(address, folder, environment)


def _steps(run: Path) -> list[int]:
    metrics = run / "metrics.jsonl"
    if not metrics.exists():
        return []
    return [json.loads(line)["step"] for line in metrics.read_text().splitlines()]


def test_a_stopped_job_has_saved_and_goes_on_where_it_was(head: Head) -> None:
    follower = head.start("submit", "job.yaml", "--submission-id", "first", "--follow")
    until_s = time.monotonic() + _STEP_S
    while len(_steps(head.run)) < 2:
        assert follower.poll() is None, follower.communicate()
        assert time.monotonic() < until_s, head.do("logs", "first")
        time.sleep(0.2)
    status, printed = head.do("status", "first")
    assert status == 0 and "RUNNING" in printed and " of 100000  loss" in printed

    status, printed = head.do("stop", "first")
    assert status == 0, printed
    done = _steps(head.run)
    assert f"a checkpoint after {len(done)} steps is saved in {head.run}" in printed
    followed, _ = follower.communicate(timeout=_COMMAND_S)
    assert follower.returncode == 143, followed
    assert "step     1  loss" in followed
    assert "job first was stopped" in followed

    steps = len(done) + 3
    options = ("--set", f"train.steps={steps}", "--submission-id", "second", "--follow")
    status, printed = head.do("submit", "job.yaml", *options)
    assert status == 0, printed
    assert f"step {steps:>5}  loss" in printed
    assert "job second succeeded" in printed
    assert _steps(head.run) == list(range(steps))

    status, printed = head.do("status")
    assert status == 0
    assert printed.index("second") < printed.index("first")


def test_ctrl_c_ends_the_following_and_a_failed_job_returns_its_exit_code(head: Head) -> None:
    options = ("--set", "data.kind=absent:Source", "--submission-id", "left-alone", "--follow")
    follower = head.start("submit", "job.yaml", *options)
    assert follower.stdout is not None
    for line in follower.stdout:
        if "following it" in line:
            break
    follower.send_signal(signal.SIGINT)
    printed, _ = follower.communicate(timeout=_COMMAND_S)
    assert follower.returncode == 130, printed
    assert "the job goes on" in printed

    status, printed = head.do("logs", "left-alone", "--follow")
    assert status == 1
    assert "cannot import 'absent:Source'" in printed
    assert "job left-alone failed with exit code 1" in printed


def test_a_wrong_or_missing_token_is_told(head: Head) -> None:
    status, printed = head.do("status", RAY_AUTH_TOKEN="wrong")
    assert status == 1
    assert "refuses the token of RAY_AUTH_TOKEN; use the one" in printed
    status, printed = head.do("submit", "job.yaml", RAY_AUTH_MODE="disabled")
    assert status == 1
    assert "wants one: export RAY_AUTH_TOKEN_PATH" in printed
