"""Faults as plain data, and what makes each of them happen, once, inside the victim's process."""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Moment = Literal[
    # In a rank: a step's ops and what they consist of.
    "op",
    "transfer sent",
    "transfer awaited",
    "gradient sync",
    "gradients synced",
    "weights half updated",
    "weights updated",
    "evaluation",
    # In a rank: keeping the state.
    "copying",
    "sending to vaults",
    "writing a checkpoint",
    # In a rank: coming back.
    "setting up",
    "restoring",
    # In the driver.
    "recording a step",
    "beginning a checkpoint",
    "writing a manifest",
    "checkpoint committed",
    "recovering",
]
Deed = Literal["kill", "stop", "remove node", "replace node", "kill vault"]

DRIVER = -1
"""In the place of a rank."""
_DEATH_S, _HELP_S, _POLL_S = 60.0, 20.0, 0.02


@dataclass(frozen=True)
class Fault:
    """Something that befalls a process.

    Args:
        name: of its mark, a file that says that it has happened.
        deed: what happens. The test removes nodes, or replaces them, and kills vaults.
        moment: when.
        place: global rank that is struck, or the driver.
        step: it happens from this step on; copies are made when there is time for them.
        count: how often the moment passes before, in a step; of ops, the part of them in percent.
        after: name of a fault that has to come first; of recoveries, which one is meant.
        also: global ranks that are killed at the same time.
    """

    name: str
    deed: Deed
    moment: Moment
    place: int
    step: int = 0
    count: int = 0
    after: str = ""
    also: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the fault as plain data, for a job file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Fault":
        """Return the fault that ``as_dict`` made plain data of."""
        return cls(**{**content, "also": tuple(content["also"])})

    def __str__(self) -> str:
        where = "driver" if self.place == DRIVER else f"rank {self.place}"
        others = f" and ranks {self.also}" if self.also else ""
        after = f" after {self.after}" if self.after else f" from step {self.step}"
        return f"{self.name}: {self.deed} {where}{others}, {self.moment} ({self.count}){after}"


class Fuse:
    """The faults that wait in one process.

    Args:
        faults: of the whole run.
        folder: of their marks.
    """

    def __init__(self, faults: Sequence[Fault], folder: Path) -> None:
        self._faults, self._folder = faults, folder
        self.place = DRIVER
        self.step = 0
        """The step that runs, or that ran last."""
        self._passed: Counter[tuple[Moment, int]] = Counter()

    def be(self, place: int) -> None:
        """Say which rank this process is, so that others can take it along."""
        self.place = place
        with process_file(self._folder, place).open("a") as file:
            file.write(f"{os.getpid()}\n")

    def here(self, moment: Moment, step: int | None = None) -> None:
        """Let happen what happens at this moment.

        Args:
            moment: that passes.
            step: of which it is; the one that runs where not given.
        """
        step = self.step if step is None else step
        self._passed[moment, step] += 1
        self.at(moment, self._passed[moment, step] - 1, step)

    def at(self, moment: Moment, count: int, step: int) -> None:
        """Let happen what happens at a moment that the caller counts."""
        for fault in self._faults:
            if (fault.place, fault.moment) != (self.place, moment):
                continue
            if count < fault.count or step < fault.step:
                continue
            if not fault.after or (self._folder / fault.after).exists():
                self._strike(fault)

    def _strike(self, fault: Fault) -> None:
        """Make a fault happen, unless it has: whoever makes the mark is the one."""
        mark = self._folder / fault.name
        try:
            file = os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return
        raylet = os.environ.get("RAY_RAYLET_PID", "0")
        about = {"pid": os.getpid(), "raylet": int(raylet), "time_s": time.time()}
        os.write(file, json.dumps(about).encode())
        os.close(file)
        if fault.deed == "kill":
            for place in fault.also:
                os.kill(processes_of(self._folder, place)[-1], signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.deed == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif fault.deed in ("remove node", "replace node"):
            time.sleep(_DEATH_S)
            raise AssertionError("the node is still there")
        else:
            _wait_for(done_mark(mark))


def process_file(folder: Path, place: int) -> Path:
    """Return the file with the process of a rank, a line for each time that it is set up."""
    return folder / f"rank-{place}"


def processes_of(folder: Path, place: int) -> list[int]:
    """Return the process of a rank, for each time that it was set up."""
    return [int(line) for line in process_file(folder, place).read_text().split()]


def done_mark(mark: Path) -> Path:
    """Return the file with which the test says that its deed is done."""
    return mark.with_name(f"{mark.name}.done")


def _wait_for(path: Path) -> None:
    until_s = time.monotonic() + _HELP_S
    while not path.exists():
        assert time.monotonic() < until_s, f"nobody made {path}"
        time.sleep(_POLL_S)
