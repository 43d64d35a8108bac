"""A sink on a thread of its own: whatever becomes of it, training goes on, and as fast."""

import queue
import threading
import time
from collections.abc import Callable

from disagg_train.metrics.sinks import Sink

Entry = Callable[[Sink], None]
"""Gives a sink something."""

_MOST_WAITING = 1024


class BackgroundSink:
    """Feeds a sink from a bounded queue; what it cannot take in time is lost, and counted.

    Args:
        name: of the sink, for people.
        open_sink: makes the sink; called on the thread, where it may take its time.
        most_waiting: entries that may wait.
    """

    def __init__(
        self, name: str, open_sink: Callable[[], Sink], most_waiting: int = _MOST_WAITING
    ) -> None:
        self.name, self._open_sink = name, open_sink
        self._waiting: queue.Queue[Entry | None] = queue.Queue(most_waiting)
        self._ok, self._first_error = False, ""
        self._lost = self._told = 0
        self._gives_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"sink {name}", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Entries that the sink has not taken yet."""
        return self._waiting.qsize()

    def put(self, entry: Entry) -> None:
        """Give the sink something, as soon as it is ready; returns at once."""
        try:
            self._waiting.put_nowait(entry)
        except queue.Full:
            self._lost += 1

    def take_notes(self) -> list[str]:
        """Return what people should know: the first failure, and no other, when it came."""
        if self._told or not self._first_error:
            return []
        self._told = 1
        return [f"{self.name}: {self._first_error}; training goes on without it"]

    def end(self, ok: bool) -> None:
        """Ask the sink to end once it has taken what waits."""
        self._ok = ok
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            self._gives_up.set()

    def await_end(self, until_s: float) -> list[str]:
        """Wait for the end that was asked for.

        Args:
            until_s: by ``time.monotonic``; the thread is left alone then.

        Returns:
            What people should know.
        """
        self._thread.join(max(0.0, until_s - time.monotonic()))
        notes = self.take_notes()
        lost = self._lost + self.num_waiting
        if lost:
            notes.append(f"{self.name}: {lost} of the run's entries did not get there")
        elif self._thread.is_alive():
            notes.append(f"{self.name}: it was not waited for any longer")
        return notes

    def _run(self) -> None:
        try:
            sink = self._open_sink()
        except Exception as error:
            self._fail(error)
            self._drain()
            return
        while not self._gives_up.is_set() and (entry := self._waiting.get()) is not None:
            self._try(entry, sink)
        try:
            sink.close(self._ok)
        except Exception as error:
            self._fail(error)

    def _try(self, entry: Entry, sink: Sink) -> None:
        try:
            entry(sink)
        except Exception as error:
            self._lost += 1
            self._fail(error)

    def _drain(self) -> None:
        """Throw away all that comes: the sink could not be opened."""
        while not self._gives_up.is_set() and self._waiting.get() is not None:
            self._lost += 1

    def _fail(self, error: Exception) -> None:
        first_line = next(iter(str(error).splitlines()), "")
        self._first_error = self._first_error or f"{type(error).__name__}: {first_line}"
