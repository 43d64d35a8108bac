"""A Ray cluster of its own, as ``ray start`` makes it: a head with a dashboard, and nodes."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_START_S, _STOP_S, _POLL_S = 90.0, 30.0, 0.2
_TRIES = 3
_LOWEST_PORT, _HIGHEST_PORT = 20_000, 32_000
"""Above the ports that Ray's workers take by default, below those that the system gives out."""
_PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "node-manager-port",
    "object-manager-port",
)


@contextmanager
def ray_head(
    folder: Path, num_cpus: int, environment: dict[str, str], pools: Sequence[str] = ()
) -> Iterator[str]:
    """Yield the address of the dashboard of a head that ends with the context.

    Args:
        folder: for all of Ray's files; a short path, as sockets lie in it.
        num_cpus: that the head offers.
        environment: on top of this process's.
        pools: a node of one CPU joins for each, with the label ``pool``.
    """
    ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
    env = {**os.environ, "RAY_TMPDIR": str(folder), **environment}
    command = [
        *("--head", f"--num-cpus={num_cpus}", f"--temp-dir={folder}"),
        *("--include-dashboard=true", "--disable-usage-stats"),
        *(f"--{name}={port}" for name, port in ports.items()),
    ]
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    with ExitStack() as started:
        head = started.enter_context(_node(folder / "start.log", env, command))
        _await(address, head, folder / "start.log")
        for pool in pools:
            joining = [f"--address=127.0.0.1:{ports['port']}", "--num-cpus=1"]
            labelled = [*joining, f"--labels=pool={pool}"]
            _join(started, folder / f"{pool}.log", env, labelled)
        yield address


@contextmanager
def _node(
    log: Path, environment: dict[str, str], options: Sequence[str]
) -> "Iterator[subprocess.Popen[bytes]]":
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
        *("--node-ip-address=127.0.0.1", "--object-store-memory=100000000"),
        *("--min-worker-port=0", "--max-worker-port=0", *options),
    ]
    with log.open("w") as to:
        node = subprocess.Popen(
            command, env=environment, stdout=to, stderr=to, start_new_session=True
        )
    try:
        yield node
    finally:
        _end(node)


def _await(address: str, head: "subprocess.Popen[bytes]", log: Path) -> None:
    until_s = time.monotonic() + _START_S
    while time.monotonic() < until_s:
        assert head.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=5.0).close()
        except urllib.error.HTTPError:
            return  # it answers, and wants a token
        except OSError:
            time.sleep(_POLL_S)
        else:
            return
    raise AssertionError(f"no dashboard in {_START_S:g} s: {log.read_text()}")


def _join(
    started: ExitStack, log: Path, environment: dict[str, str], options: Sequence[str]
) -> None:
    """Have a node join; Ray gives one half a minute, and a busy machine may need another try."""
    for _ in range(_TRIES):
        node = started.enter_context(_node(log, environment, options))
        until_s = time.monotonic() + _START_S
        while node.poll() is None and time.monotonic() < until_s:
            if "Ray runtime started" in log.read_text():
                return
            time.sleep(_POLL_S)
        with suppress(ProcessLookupError):  # what it had started
            os.killpg(node.pid, signal.SIGKILL)
    raise AssertionError(f"not joined in {_TRIES} tries: {log.read_text()}")


def _end(node: "subprocess.Popen[bytes]") -> None:
    """End a node as ``ray start --block`` ends: with all processes that it started."""
    node.terminate()
    try:
        node.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(node.pid, signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    found: list[int] = []
    with ExitStack() as held:
        for port in range(_LOWEST_PORT + os.getpid() % 10_000, _HIGHEST_PORT):
            bound = held.enter_context(socket.socket())
            try:
                bound.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise AssertionError("no free ports")
