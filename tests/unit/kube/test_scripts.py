"""The head's scripts, run: a driver is asked to stop once, whoever asks."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from disagg_train.kube.scripts import RUN, STOP

_LIMIT_S = 60
_DRIVER = """
import signal, sys, time
signals = 0
def note(*_):
    global signals
    signals += 1
signal.signal(signal.SIGTERM, note)
print("ready", flush=True)
while not signals:
    time.sleep(0.01)
time.sleep(1)
sys.exit(100 + signals)
"""


class Head:
    """A driver that counts the signals it gets until it has saved; the count is its status."""

    def __init__(self, folder: Path) -> None:
        self.environment = os.environ | {"DISAGG_TRAIN_STATE": str(folder / "state")}
        self.folder = folder
        (folder / "run.sh").write_text(RUN)
        (folder / "stop.sh").write_text(STOP)

    def run(self, driver: str = _DRIVER) -> "subprocess.Popen[str]":
        command = ["sh", str(self.folder / "run.sh"), sys.executable, "-c", driver]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def stop(self) -> None:
        """Run what Kubernetes runs before it ends the pod."""
        script = str(self.folder / "stop.sh")
        subprocess.run(["sh", script], env=self.environment, timeout=_LIMIT_S, check=True)


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    yield Head(tmp_path)


def _ready(running: "subprocess.Popen[str]") -> None:
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"


def test_a_pod_that_is_to_end_asks_the_driver_and_waits_for_it(head: Head) -> None:
    running = head.run()
    _ready(running)
    head.stop()
    assert running.wait(_LIMIT_S) == 101


def test_a_driver_that_ray_has_asked_is_not_asked_again(head: Head) -> None:
    running = head.run()
    _ready(running)
    os.killpg(running.pid, signal.SIGTERM)  # as Ray stops a job: all of its processes
    until_s = time.monotonic() + _LIMIT_S
    while not (head.folder / "state" / "asked").exists():
        assert time.monotonic() < until_s
    head.stop()
    assert running.wait(_LIMIT_S) == 101


def test_the_status_of_a_driver_that_ends_by_itself_is_passed_on(head: Head) -> None:
    assert head.run("import sys; sys.exit(7)").wait(_LIMIT_S) == 7


def test_a_second_driver_is_asked_although_the_first_was(head: Head) -> None:
    for _ in range(2):
        running = head.run()
        _ready(running)
        os.killpg(running.pid, signal.SIGTERM)
        assert running.wait(_LIMIT_S) == 101
    running = head.run()
    _ready(running)
    head.stop()
    assert running.wait(_LIMIT_S) == 101


def test_a_pod_without_a_driver_ends_at_once(head: Head) -> None:
    head.stop()
