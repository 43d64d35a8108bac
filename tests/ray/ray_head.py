"""A Ray head of its own, as ``ray start`` makes it: with a dashboard, on free ports."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_START_S, _STOP_S, _POLL_S = 90.0, 30.0, 0.2
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
def ray_head(folder: Path, num_cpus: int, environment: dict[str, str]) -> Iterator[str]:
    """Yield the address of the dashboard of a head that ends with the context.

    Args:
        folder: for all of Ray's files; a short path, as sockets lie in it.
        num_cpus: that the node offers.
        environment: on top of this process's.
    """
    ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--node-ip-address=127.0.0.1", "--include-dashboard=true", "--disable-usage-stats"),
        *(f"--num-cpus={num_cpus}", f"--temp-dir={folder}"),
        *("--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=100000000"),
        *(f"--{name}={port}" for name, port in ports.items()),
    ]
    env = {**os.environ, "RAY_TMPDIR": str(folder), **environment}
    with (folder / "start.log").open("w") as log:
        head = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        _await(address, head, folder / "start.log")
        yield address
    finally:
        _end(head)


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


def _end(head: "subprocess.Popen[bytes]") -> None:
    """End the head as ``ray start --block`` ends: with all processes that it started."""
    head.terminate()
    try:
        head.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)


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
