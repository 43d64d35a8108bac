"""A Ray cluster of several nodes on this machine, of which nodes can be removed."""

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_CPUS_PER_NODE, _STORE_BYTES = 2, 80 << 20
_NUM_NODES = 3
_ACTORS = ("ray::RankActor", "ray::Vault", "ray::NodeAgent")
_RAY = "ray"
"""Ray's own folder, which it puts into RAY_TMPDIR."""
_END_S, _POLL_S = 20.0, 0.1


class Machine:
    """This machine, of which runs use one folder for their files.

    Args:
        folder: short, since Ray puts sockets there.
        environment: sets the environment that all processes start with.
    """

    address: str | None = None
    """Of a running Ray; without one, a run starts its own."""

    def __init__(self, folder: Path, environment: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._memory, self._files = _shared_memory(), set[str]()
        environment.setenv("TMPDIR", str(folder))
        environment.setenv("RAY_TMPDIR", str(folder))
        environment.setenv("RAY_AUTH_MODE", "disabled")
        environment.setenv("RAY_worker_niceness", "0")

    def left_over(self) -> list[str]:
        """Return what runs have left here, once it had time to go."""
        until_s = time.monotonic() + _END_S
        while (found := self._left_now()) and time.monotonic() < until_s:
            time.sleep(_POLL_S)
        return found

    def _left_now(self) -> list[str]:
        processes = [f"process {pid}: {_command(pid)}" for pid in self._processes_of_runs()]
        memory, files = _shared_memory() - self._memory, self._temporary_files() - self._files
        return processes + sorted(memory) + sorted(files)

    def _processes_of_runs(self) -> list[int]:
        return self._processes()

    def _processes(self) -> list[int]:
        """Return live processes that were started with this folder for their files."""
        mark, found = f"TMPDIR={self.folder}\0".encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                alive = " Z " not in (process / "stat").read_text()
                if alive and mark in (process / "environ").read_bytes():
                    found.append(int(process.name))
        return found

    def _temporary_files(self) -> set[str]:
        """Return what lies there, torch's cache of compiled code aside, which is kept."""
        return {str(p) for p in self.folder.iterdir() if not p.name.startswith("torchinductor")}


class Nodes(Machine):
    """A Ray cluster: nodes of two CPUs, and a head without any, where drivers attach."""

    def __init__(self, folder: Path, environment: pytest.MonkeyPatch) -> None:
        from ray.cluster_utils import Cluster

        super().__init__(folder, environment)
        (folder / _RAY).mkdir()
        health = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
        head = {
            "num_cpus": 0,
            "object_store_memory": _STORE_BYTES,
            "include_dashboard": False,
            "_system_config": health | {"health_check_initial_delay_ms": 0},
        }
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes: dict[int, Any] = {}
        for _ in range(_NUM_NODES):
            self.add()
        self.address = self._cluster.address
        self._files = self._temporary_files()

    def add(self) -> None:
        """Start a node."""
        node = self._cluster.add_node(num_cpus=_CPUS_PER_NODE, object_store_memory=_STORE_BYTES)
        self._nodes[int(node.all_processes["raylet"][0].process.pid)] = node

    def remove(self, raylet: int) -> None:
        """Take a node away at once, with all of its processes.

        Args:
            raylet: the node's own process.
        """
        here = _children(raylet)
        self._cluster.remove_node(self._nodes.pop(raylet), allow_graceful=False)
        for pid in here:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def none_to_spare(self) -> Iterator[None]:
        """Leave room for three ranks and not much more; afterwards there is room again."""
        self.remove(next(iter(self._nodes)))
        try:
            yield
        finally:
            while len(self._nodes) < _NUM_NODES:
                self.add()

    def kill_vault(self, raylet: int) -> None:
        """Kill the vault of a node."""
        (vault,) = [pid for pid in _children(raylet) if _command(pid).startswith("ray::Vault")]
        os.kill(vault, signal.SIGKILL)

    def _processes_of_runs(self) -> list[int]:
        return [pid for pid in self._processes() if _command(pid).startswith(_ACTORS)]

    def _temporary_files(self) -> set[str]:
        return super()._temporary_files() - {str(self.folder / _RAY)}

    def close(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()


@contextlib.contextmanager
def several_nodes() -> Iterator[Nodes]:
    """Yield a cluster, and end it."""
    with _folder() as folder, pytest.MonkeyPatch.context() as environment:
        nodes = Nodes(folder, environment)
        try:
            yield nodes
        finally:
            nodes.close()


@contextlib.contextmanager
def this_machine() -> Iterator[Machine]:
    """Yield this machine, where runs start a Ray of their own."""
    with _folder() as folder, pytest.MonkeyPatch.context() as environment:
        yield Machine(folder, environment)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="dt-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _shared_memory() -> set[str]:
    return {f"/dev/shm/{name}" for name in os.listdir("/dev/shm")}


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def _children(parent: int) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            if int((process / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(process.name))
    return found
