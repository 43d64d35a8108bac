"""A rank's output kept in a file of the run: what it prints, and what libraries write in C.

Warm actors serve one job after the other; in between, their output goes where Ray wants it.
"""

import contextlib
import ctypes
import logging
import os
import sys
import time
from io import TextIOWrapper
from pathlib import Path

from disagg_train.config.secret_values import masked
from disagg_train.metrics.events import LOG, LineFormatter, attached

_STDOUT, _STDERR = 1, 2


class RankOutput:
    """Where this process's stdout and stderr go: to Ray's own files until told otherwise."""

    def __init__(self) -> None:
        self._rays: dict[int, int] = {}
        self._events = contextlib.ExitStack()

    def keep(self, path: str, group: str, rank: int, title: str) -> str:
        """Append all output to a file from now on.

        Args:
            path: of the file; its folder is made where it is missing.
            group: that the rank is in.
            rank: its number there.
            title: more to say about it in the line that is written first.

        Returns:
            Why that cannot be; empty where it can.
        """
        self.let_go()
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            return f"{path}: {error.strerror or error}"
        print(f"the output of group {group!r} rank {rank} goes to {path}", flush=True)
        _flush()
        for fd in _outputs():
            self._rays[fd] = os.dup(fd)
            os.dup2(file, fd)
        os.close(file)
        self._begin(group, rank, title)
        return ""

    def _begin(self, group: str, rank: int, title: str) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(line_buffering=True)  # a killed process flushes nothing
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        print(f"==== {now} group {group} rank {rank}, {title}", flush=True)
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(LineFormatter(masked, group, str(rank)))
        self._events.enter_context(attached(handler))
        LOG.propagate = False  # Megatron gives the root logger a handler: a second line of each
        self._events.callback(setattr, LOG, "propagate", True)

    def let_go(self) -> None:
        """Let output go where Ray wants it."""
        self._events.close()
        _flush()
        for fd, rays in self._rays.items():
            os.dup2(rays, fd)
            os.close(rays)
        self._rays.clear()


def _outputs() -> set[int]:
    found = {_STDOUT, _STDERR}
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            found.add(stream.fileno())
    return found


def _flush() -> None:
    """Write out what Python and C hold back, so that it comes to where it was meant to go."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    ctypes.CDLL(None).fflush(None)
