"""One actor per node that looks at its ranks' processes from outside, and ends them.

A stopped process answers nothing and obeys nobody but SIGKILL, and a dead one is asked in vain.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.beacon import STACKS_SIGNAL, read_beacon

_STACK_S, _POLL_S = 3.0, 0.02
_ANSWER_S = 3.0
_PY_SPY = str(Path(sys.executable).with_name("py-spy"))


@dataclass(frozen=True)
class Home:
    """Where a rank's process is.

    Args:
        node_id: Ray's name of the node.
        address: the node's address.
        pid: the process.
        beacon: file of the process that shows what it is at.
        stacks: file of the process that takes its stacks.
        gpus: that Ray gave it.
    """

    node_id: str
    address: str
    pid: int
    beacon: int
    stacks: int
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sighting:
    """What is seen of a process from outside.

    Args:
        state: as in ``/proc/<pid>/stat``: R runs, S sleeps, D cannot be interrupted, T is
            stopped; empty where it is gone.
        op: what it was at last.
        stack: of its threads, where one can be had.
    """

    state: str = ""
    op: str = ""
    stack: str = ""


@dataclass
class _Watched:
    """A process, with files that stay open after its end."""

    process: int
    beacon: int
    stacks: int

    def is_gone(self, timeout_s: float = 0.0) -> bool:
        return bool(select.select([self.process], [], [], timeout_s)[0])

    def close(self) -> None:
        for fd in (self.process, self.beacon, self.stacks):
            os.close(fd)


@ray.remote(num_cpus=0, max_restarts=0)
class NodeAgent:
    """Looks at processes of its node. Ended processes cannot be mistaken for later ones."""

    def __init__(self) -> None:
        self._watched: dict[int, _Watched] = {}

    def watch(self, homes: Collection[Home]) -> None:
        """Remember processes that still live."""
        for home in homes:
            known = self._watched.get(home.pid)
            if known is not None and known.is_gone():
                self._watched.pop(home.pid).close()
            if home.pid not in self._watched:
                with contextlib.suppress(OSError):
                    self._watched[home.pid] = _open(home)

    def look(self, pids: Collection[int], with_stack: bool) -> dict[int, Sighting]:
        """Return what is seen of processes.

        Args:
            pids: whose.
            with_stack: whether to get the stacks of those that live, which interrupts them.
        """
        return {
            pid: _look(pid, watched, with_stack)
            for pid in pids
            if (watched := self._watched.get(pid)) is not None
        }

    def end(self, pids: Collection[int], deadline_s: float) -> list[int]:
        """End processes for good; return those that still live at the deadline."""
        until_s = time.monotonic() + deadline_s
        known = {pid: self._watched[pid] for pid in pids if pid in self._watched}
        for watched in known.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(watched.process, signal.SIGKILL)
        return [
            pid
            for pid, watched in known.items()
            if not watched.is_gone(max(0.0, until_s - time.monotonic()))
        ]


def _open(home: Home) -> _Watched:
    process = os.pidfd_open(home.pid)
    try:
        files = [
            os.open(f"/proc/{home.pid}/fd/{fd}", os.O_RDWR) for fd in (home.beacon, home.stacks)
        ]
    except OSError:
        os.close(process)
        raise
    return _Watched(process, *files)


def _look(pid: int, watched: _Watched, with_stack: bool) -> Sighting:
    op = read_beacon(watched.beacon)
    if watched.is_gone():
        return Sighting("", op)
    state = _state(pid)
    stack = _stack(pid, watched, state) if with_stack else ""
    return Sighting(state, op, stack)


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _stack(pid: int, watched: _Watched, state: str) -> str:
    """Return the stacks of a process: its own account, or where it gives none, one from outside."""
    if state not in "tT":
        os.ftruncate(watched.stacks, 0)
        os.lseek(watched.stacks, 0, os.SEEK_SET)
        signal.pidfd_send_signal(watched.process, STACKS_SIGNAL)
        if own := _settled(watched.stacks):
            return own
    try:
        command = [_PY_SPY, "dump", "--nonblocking", "--pid", str(pid)]
        found = subprocess.run(
            command, capture_output=True, text=True, timeout=_STACK_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):  # py-spy comes with ray[default] only
        return ""
    return found.stdout if found.returncode == 0 else ""


def _settled(fd: int) -> str:
    """Return what a file holds once it has stopped to grow; empty if nothing comes."""
    until_s, size = time.monotonic() + _STACK_S, 0
    while time.monotonic() < until_s:
        time.sleep(_POLL_S)
        now = os.fstat(fd).st_size
        if now and now == size:
            return os.pread(fd, now, 0).decode(errors="replace")
        size = now
    return ""


class Agents:
    """The agents of all nodes where ranks are; a node gets its own when its first rank starts."""

    def __init__(self) -> None:
        self._on: dict[str, Any] = {}

    def watch(self, homes: Iterable[Home]) -> None:
        """Have processes remembered by the agents of their nodes; returns at once."""
        for node_id, here in _by_node(homes).items():
            if node_id not in self._on:
                self._on[node_id] = start_on_node(NodeAgent, node_id)
            self._on[node_id].watch.remote(here)

    def look(self, homes: Iterable[Home], with_stack: bool = True) -> dict[Home, Sighting]:
        """Return what is seen of processes; nothing of those whose node does not answer."""
        by_node = _by_node(homes)
        asked = {
            node_id: self._on[node_id].look.remote([home.pid for home in here], with_stack)
            for node_id, here in by_node.items()
            if node_id in self._on
        }
        answers = _answers(asked, _ANSWER_S + (2 * _STACK_S if with_stack else 0.0))
        return {
            home: answers[node_id][home.pid]
            for node_id, here in by_node.items()
            for home in here
            if home.pid in answers.get(node_id, {})
        }

    def end(self, homes: Iterable[Home], deadline_s: float) -> None:
        """End processes, stopped ones too, and wait until they are gone, but no longer."""
        asked = {
            node_id: self._on[node_id].end.remote([home.pid for home in here], deadline_s)
            for node_id, here in _by_node(homes).items()
            if node_id in self._on
        }
        _answers(asked, deadline_s + 1.0)

    def close(self) -> None:
        """End the agents."""
        for agent in self._on.values():
            ray.kill(agent)
        self._on.clear()


def start_on_node(actor: Any, node_id: str) -> Any:
    """Start an actor that belongs to one node; return its handle at once."""
    place = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return actor.options(scheduling_strategy=place).remote()


def _by_node(homes: Iterable[Home]) -> dict[str, list[Home]]:
    found: dict[str, list[Home]] = {}
    for home in homes:
        found.setdefault(home.node_id, []).append(home)
    return found


def _answers(asked: dict[str, ray.ObjectRef], deadline_s: float) -> dict[str, Any]:
    """Return the answers that come in time, of those that are not lost."""
    if not asked:
        return {}
    done, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=deadline_s)
    found = {}
    for node_id, call in asked.items():
        if call in done:
            with contextlib.suppress(RayError):
                found[node_id] = ray.get(call)
    return found
