"""A run as people start it, in a process of its own, that is started again whenever it is killed.

The test looks on: it removes nodes and kills vaults when a rank says that it is time, and takes
the times from each fault to the first step that is done after it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from disagg_train.config.job import JobConfig
from disagg_train.driver.requests import Requests, ResizeRequest
from tests.chaos.faults import Fault, done_mark
from tests.chaos.jobs import marks_folder
from tests.chaos.nodes import Machine, Nodes

_END_S, _POLL_S = 600.0, 0.02
_MOST_STARTS = 10


@dataclass
class Outcome:
    """How a run went.

    Args:
        status: of its last process.
        log: all that it said.
        starts: of its driver.
        recovery_s: by name of a fault, how long it took to the next step that was done.
    """

    status: int = 0
    log: str = ""
    starts: int = 0
    recovery_s: dict[str, float] = field(default_factory=dict)


def run(
    job: JobConfig,
    machine: Machine,
    faults: Sequence[Fault] = (),
    requests: Mapping[int, ResizeRequest] | None = None,
) -> Outcome:
    """Train a job, whatever befalls it.

    Args:
        job: the job.
        machine: where; nodes come and go only where there are several.
        faults: that befall it.
        requests: what is asked of the run once so many steps are done.
    """
    return _Run(job, machine, faults, requests or {}).to_its_end()


class _Run:
    def __init__(
        self,
        job: JobConfig,
        machine: Machine,
        faults: Sequence[Fault],
        requests: Mapping[int, ResizeRequest],
    ) -> None:
        self._output, self._machine = Path(job.output), machine
        self._requests = dict(requests)
        self._marks = marks_folder(self._output)
        self._waiting = {fault.name: fault for fault in faults}
        self._outcome = Outcome()
        self._metrics = _Metrics(self._output / "metrics.jsonl")
        self._struck: dict[str, float] = {}
        self._job_file = self._output.with_suffix(".yaml")
        self._log_file = self._output.with_suffix(".log")
        self._job_file.write_text(yaml.safe_dump(job.model_dump(mode="json")))

    def to_its_end(self) -> Outcome:
        outcome, until_s = self._outcome, time.monotonic() + _END_S
        while outcome.starts < _MOST_STARTS:
            outcome.starts += 1
            outcome.status = self._start(until_s)
            if outcome.status != -signal.SIGKILL:
                break
        outcome.log = self._log_file.read_text()
        return outcome

    def _start(self, until_s: float) -> int:
        command = [sys.executable, "-m", "disagg_train.cli", "train", str(self._job_file)]
        command += ["--resume", "auto"]
        if self._machine.address is not None:
            command += ["--address", self._machine.address]
        with self._log_file.open("a") as log:
            driver = subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ))
        try:
            while driver.poll() is None:
                self._look()
                if time.monotonic() > until_s:
                    raise AssertionError(f"not done in {_END_S:g} s\n{self._log_file.read_text()}")
                time.sleep(_POLL_S)
        finally:
            driver.kill()
            driver.wait()
        self._look()
        return driver.returncode

    def _look(self) -> None:
        for name, fault in list(self._waiting.items()):
            if (struck := _read(self._marks / name)) is not None:
                del self._waiting[name]
                self._help(fault, int(struck["raylet"]))
                if fault.deed != "kill vault":
                    self._struck[name] = struck["time_s"]
        for steps_done in [each for each in self._requests if each <= self._metrics.num_steps]:
            Requests(self._output).ask(self._requests.pop(steps_done))
        if self._metrics.go_on_after_rewinding():
            now_s = time.time()
            for name, struck_s in self._struck.items():
                self._outcome.recovery_s[name] = now_s - struck_s
            self._struck.clear()

    def _help(self, fault: Fault, raylet: int) -> None:
        nodes = self._machine
        if fault.deed in ("remove node", "replace node"):
            assert isinstance(nodes, Nodes)
            nodes.remove(raylet)
            if fault.deed == "replace node":
                nodes.add()
        elif fault.deed == "kill vault":
            assert isinstance(nodes, Nodes)
            nodes.kill_vault(raylet)
            done_mark(self._marks / fault.name).touch()


class _Metrics:
    """A file that grows with each step, and is replaced when the run goes back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = self._size = 0
        self._is_new = False

    @property
    def num_steps(self) -> int:
        """Steps that are done."""
        return self._path.read_bytes().count(b"\n") if self._path.exists() else 0

    def go_on_after_rewinding(self) -> bool:
        """Whether a first step was added to a new file since the last call."""
        try:
            found = self._path.stat()
        except OSError:
            return False
        if found.st_ino != self._file:
            self._file, self._size, self._is_new = found.st_ino, found.st_size, True
        if not self._is_new or found.st_size == self._size:
            return False
        self._is_new = False
        return True


def _read(mark: Path) -> dict[str, float] | None:
    try:
        content: dict[str, float] = json.loads(mark.read_text())
    except (OSError, ValueError):
        return None
    return content
