"""Processes with a part of a core each."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from disagg_train.bench.core_share import can_share_cores, core_share
from disagg_train.errors import ClusterError

_SPINS = (
    "import time\ninput()\nbegin, spent = time.time(), time.process_time()\n"
    "while time.time() < begin + 1.0: pass\nprint(time.process_time() - spent)"
)

needs_cgroups = pytest.mark.skipif(
    not can_share_cores(), reason="this user may not limit processes here"
)


@pytest.fixture
def spinning() -> Iterator["subprocess.Popen[str]"]:
    """Yield a process that computes for a second once it is told to."""
    command = [sys.executable, "-c", _SPINS]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def _seconds_spent(process: "subprocess.Popen[str]") -> float:
    spent, _ = process.communicate("\n", timeout=60)
    return float(spent)


@needs_cgroups
def test_a_process_has_no_more_than_its_part(spinning: "subprocess.Popen[str]") -> None:
    with core_share([spinning.pid], 0.25):
        assert _seconds_spent(spinning) < 0.35


@needs_cgroups
def test_a_process_is_free_again_afterwards(spinning: "subprocess.Popen[str]") -> None:
    with core_share([spinning.pid], 0.2):
        pass
    assert _seconds_spent(spinning) > 0.25


@needs_cgroups
def test_a_process_that_is_gone_is_told() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with (
        pytest.raises(ClusterError, match="cannot be given 0.5 cores"),
        core_share([gone.pid], 0.5),
    ):
        pass


def test_what_fails_while_processes_are_limited_keeps_its_own_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("disagg_train.bench.core_share._share", lambda *_: None)
    with pytest.raises(ConnectionError, match="a rank hung up"), core_share([1], 0.5):
        raise ConnectionError("a rank hung up")


def test_a_machine_that_lets_nobody_limit_processes_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("disagg_train.bench.core_share._root", lambda: tmp_path / "missing")
    with (
        pytest.raises(ClusterError, match=r"cannot be given 0\.5 cores .* write to the cgroup"),
        core_share([1], 0.5),
    ):
        pass
