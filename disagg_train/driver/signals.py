"""What SIGINT and SIGTERM do to a run: they never land in the middle of something.

An exception raised by a signal can land anywhere, inside Ray's or a lock's own code too,
and then clean-up may hang. Held back, a signal is delivered where nothing is half done. While a
run trains, the first one only asks it to end its step and to save.

A notebook's kernel sets the handler of SIGINT anew for every cell, and event loops have handlers
that only take note; both are met here.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn, Self

from disagg_train.errors import RunStopped

Deliver = Callable[[], None]
_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_ASKED = 0
"""In a signal's place where the wish to stop came by word."""
_TOO_LATE = (
    "the run was asked to stop; its step and its checkpoint took longer than recovery.grace_s, so "
    "it ended without waiting for them: `resume: auto` goes on from the newest that is complete"
)


class Stop:
    """Turns the first signal into a request; a second one, or a grace period, is the end.

    The second one goes to its usual handler, as soon as nothing holds it back. A context manager,
    not installed where a signal is ignored, nor in other threads than the main one, which receive
    none.

    Args:
        grace_s: after a first signal, how long until it goes to its usual handler after all.
        clock: seconds, growing.
    """

    def __init__(self, grace_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._grace_s, self._clock = grace_s, clock
        self._usual: dict[int, Any] = {}
        self._until_s = float("inf")
        self._second: int | None = None
        self._holds_back = 0
        self.requested: int | None = None
        """Number of the first signal that came, 0 for a spoken wish; None as long as none did."""

    def __enter__(self) -> Self:
        self._install()
        if self._usual:
            _installed.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._uninstall()

    def ask(self) -> None:
        """End the run as a first signal does, without one; another signal is then a second one."""
        if self.requested is None:
            self.requested, self._until_s = _ASKED, self._clock() + self._grace_s

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """Let time pass that is not of the grace: the run is not at work."""
        begin_s = self._clock()
        try:
            yield
        finally:
            if self.requested is not None:
                asked_s = self._until_s - self._grace_s
                self._until_s += self._clock() - max(begin_s, asked_s)

    @contextlib.contextmanager
    def holding_back(self) -> Iterator[None]:
        """Hold a second signal back, for ``deliver`` or the end."""
        self._install()
        self._holds_back += 1
        try:
            yield
        finally:
            self._holds_back -= 1
            self.deliver()

    def deliver(self) -> None:
        """Call the usual handler if a second signal came, or if the grace period is over."""
        if self._second is not None or self._clock() > self._until_s:
            self.raise_it(_TOO_LATE)

    def raise_it(self, unsaved: str = "") -> None:
        """Call the usual handler of the signal that came; all handlers are the usual ones again.

        It raises ``KeyboardInterrupt`` or ``SystemExit``, or ends the process. A wish that came by
        word raises ``RunStopped``.

        Args:
            unsaved: why there is no new checkpoint; empty where there is one.
        """
        number, self._second = self._second or self.requested, None
        self._uninstall()
        if number == _ASKED:
            raise RunStopped(unsaved) if unsaved else RunStopped
        if number is not None:
            _raise(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.requested is None:
            self.requested, self._until_s = number, self._clock() + self._grace_s
            return
        self._second = number
        if not self._holds_back:
            self.raise_it()

    def _install(self) -> None:
        """Take the place of the usual handlers, also of those that came since the last time."""
        for number, usual in _usual_handlers(ignored=False).items():
            if usual != self._note:
                self._usual[number] = usual
                signal.signal(number, self._note)

    def _uninstall(self) -> None:
        _restore(self._usual, self._note)
        if self._usual:
            _installed.remove(self)
        self._usual = {}
        self._until_s = float("inf")


_installed: list[Stop] = []
"""The one that is installed, if any; signal handlers are the process's, and so is this."""


@contextlib.contextmanager
def deferred_signals() -> Iterator[Deliver]:
    """Yield a function that delivers a signal that came meanwhile to its usual handler.

    What is still held back at the end is delivered then. Threads other than the main one
    receive no signals, so there is nothing to hold back. An installed ``Stop`` holds signals
    back anyway, and says which are delivered.
    """
    if _installed and threading.current_thread() is threading.main_thread():
        stop = _installed[-1]
        with stop.holding_back():
            yield stop.deliver
        return
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        arrived.append(number)

    usual = _usual_handlers()
    for number in usual:
        signal.signal(number, note)

    def deliver_arrived() -> None:
        if arrived:
            _restore(usual)
            signal.raise_signal(arrived.pop())

    try:
        yield deliver_arrived
    finally:
        _restore(usual)
    deliver_arrived()


def _usual_handlers(ignored: bool = True) -> dict[int, Any]:
    """Return the handlers that can be replaced; outside the main thread, none can."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    handlers = {number: signal.getsignal(number) for number in _NUMBERS}
    left_alone = (None,) if ignored else (None, signal.SIG_IGN)
    return {number: usual for number, usual in handlers.items() if usual not in left_alone}


def _restore(usual: dict[int, Any], ours: Any = None) -> None:
    """Put handlers back; where ``ours`` is given, only in its own place."""
    for number, handler in usual.items():
        if ours is None or signal.getsignal(number) == ours:
            signal.signal(number, handler)


def _raise(number: int) -> NoReturn:
    """Call a signal's handler; one that only takes note, an event loop's, must not be the end."""
    signal.raise_signal(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
