"""Turns an exchange that hangs on a GPU into an error, without the host waiting for GPUs.

A wait on a GPU only makes one stream wait for another, so a message that never comes blocks
the device and, at the next copy to the host, the process. One thread per process watches
the exchanges under way. At a deadline, or when a connection reports an error, it writes down
why, and only then aborts: whatever the abort sets free finds the reason at its next ``check``.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from disagg_train.errors import BoundaryError

_POLL_S = 0.05
_ABORT_S = 10.0
_KILL = "the process must be killed"


class Event(Protocol):
    """A point in a stream's work."""

    def query(self) -> bool:
        """Return whether the work before it is done; never blocks."""


class Connection(Protocol):
    """What the watchdog can end; ``name`` holds boundary, direction and epoch."""

    @property
    def name(self) -> str:
        """Name in errors."""

    def check_async_error(self) -> None:
        """Raise where the connection broke while nobody looked; never blocks."""

    def abort(self) -> None:
        """End all messages under way; may block."""


@dataclass(eq=False)
class Watch:
    """An exchange under way.

    Args:
        connection: what carries it.
        what: its op, tag and peers, for errors.
        done: fires when its messages are through.
        deadline_s: how long a stream may stand still for it.
        awaited: fires when a stream has nothing left to do but wait for it. The deadline
            counts from here, since a receive is posted long before its message is due.
    """

    connection: Connection
    what: str
    done: Event
    deadline_s: float
    awaited: Event | None = None
    _since_s: float | None = None

    def is_overdue(self, now_s: float) -> bool:
        """Return whether a stream has waited for longer than the deadline."""
        if self._since_s is None and self.awaited is not None and self.awaited.query():
            self._since_s = now_s
        return self._since_s is not None and now_s - self._since_s > self.deadline_s


class Watchdog:
    """Watches the connections of one process from a thread of its own.

    The thread starts with the first exchange and sleeps while none is under way.

    Args:
        poll_s: pause between two looks at the exchanges under way.
        abort_s: how long aborting one connection may take.
    """

    def __init__(self, poll_s: float = _POLL_S, abort_s: float = _ABORT_S) -> None:
        self._poll_s, self._abort_s = poll_s, abort_s
        self._connections: list[Connection] = []
        self._watches: list[Watch] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._told = self._failure = self._stuck = ""

    @property
    def failure(self) -> str:
        """Why the first exchange failed; empty while all is well. Costs one attribute."""
        return self._failure + self._stuck

    def check(self) -> None:
        """Raise if an exchange of this process failed.

        Raises:
            BoundaryError: naming boundary, op, tag and peers.
        """
        if self._failure:
            raise BoundaryError(self.failure)

    def add(self, connection: Connection) -> None:
        """Abort ``connection`` together with all others, should one of them fail."""
        with self._changed:
            self._connections.append(connection)

    def forget(self, connection: Connection) -> None:
        """Stop watching a connection, before it is closed."""
        with self._changed:
            self._connections = [c for c in self._connections if c is not connection]
            self._watches = [w for w in self._watches if w.connection is not connection]

    def watch(self, watch: Watch) -> None:
        """Watch an exchange until it is done."""
        with self._changed:
            self._watches.append(watch)
            self._wake()

    def fail(self, reason: str) -> None:
        """Fail with ``reason`` and abort everything: for news of a peer's death."""
        with self._changed:
            self._told = self._told or reason
            self._wake()

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
            self._thread.start()
        self._changed.notify()

    def close(self) -> None:
        """End the thread; what it found stays readable."""
        with self._changed:
            self._closed = True
            self._watches.clear()
            self._connections.clear()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._watches or self._told)
                if self._closed:
                    return
                self._failure = self._look(time.monotonic())
                connections = list(self._connections)
            if self._failure:
                self._abort(connections)
                return
            time.sleep(self._poll_s)

    def _look(self, now_s: float) -> str:
        """Forget what is done and return why the first of the others failed, or nothing."""
        if self._told:
            return self._told
        try:
            self._watches = [w for w in self._watches if not w.done.query()]
        except Exception as error:
            return f"{self._watches[0].connection.name}: the GPU reports {error}"
        for watch in self._watches:
            reason = _reason(watch, now_s)
            if reason:
                return f"{watch.connection.name}: {watch.what}: {reason}"
        return ""

    def _abort(self, connections: list[Connection]) -> None:
        """Abort every connection: the step is lost, and any of them may hold a stream up."""
        for connection in connections:
            try:
                returned = bounded(connection.abort, self._abort_s)
            except Exception as error:
                self._stuck = f"; aborting {connection.name} failed: {error}; {_KILL}"
                continue
            if not returned:
                self._stuck = (
                    f"; aborting {connection.name} did not return in {self._abort_s:g} s; {_KILL}"
                )


def _reason(watch: Watch, now_s: float) -> str:
    try:
        watch.connection.check_async_error()
    except Exception as error:
        return f"the connection reports {error}"
    if watch.is_overdue(now_s):
        return f"not done {watch.deadline_s:g} s after it was waited for"
    return ""


def bounded(call: Callable[[], None], limit_s: float) -> bool:
    """Run ``call`` on a thread of its own; return whether it ended in time.

    A call that does not end keeps its thread, which dies with the process.

    Raises:
        Exception: whatever ``call`` raised in time.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="bounded", daemon=True)
    thread.start()
    thread.join(limit_s)
    if errors:
        raise errors[0]
    return not thread.is_alive()
