"""Hold SIGINT and SIGTERM back while a step is handed out and awaited.

An exception raised by a signal can land anywhere, inside Ray's or a lock's own code too,
and then clean-up may hang. Held back, a signal is delivered where nothing is half done.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

Deliver = Callable[[], None]


@contextlib.contextmanager
def deferred_signals() -> Iterator[Deliver]:
    """Yield a function that delivers a signal that came meanwhile to its usual handler.

    What is still held back at the end is delivered then. Threads other than the main one
    receive no signals, so there is nothing to hold back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        arrived.append(number)

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not None]
    usual = {number: signal.signal(number, note) for number in numbers}

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def deliver() -> None:
        if arrived:
            restore()
            signal.raise_signal(arrived.pop())

    try:
        yield deliver
    finally:
        restore()
    deliver()
