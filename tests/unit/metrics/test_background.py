"""Whatever a sink does, who feeds it goes on at once, and people hear of it once."""

import threading
import time
from collections.abc import Iterator

import pytest

from disagg_train.metrics.background import BackgroundSink
from disagg_train.metrics.measures import Measures
from disagg_train.metrics.records import Evaluation
from tests.unit.metrics.steps import measures

_WAIT_S = 30.0


class _Sink:
    """Notes what it is given; fails at some steps, and stands still until it is let go."""

    def __init__(self, fails_at: tuple[int, ...] = (), let_go: threading.Event | None = None):
        self.steps: list[int] = []
        self.ended: list[bool] = []
        self.reached = threading.Event()
        self._fails_at, self._let_go = fails_at, let_go

    def add_step(self, measures: Measures) -> None:
        self.reached.set()
        if self._let_go is not None:
            assert self._let_go.wait(_WAIT_S)
        if measures.record.step in self._fails_at:
            raise ConnectionError("the server is gone\nand more of that")
        self.steps.append(measures.record.step)

    def add_evaluation(self, evaluation: Evaluation) -> None:
        raise NotImplementedError

    def rewind(self, steps_done: int) -> None:
        raise NotImplementedError

    def close(self, ok: bool) -> None:
        self.ended.append(ok)


def _give(sink: BackgroundSink, *steps: int) -> None:
    for step in steps:
        found = measures(step)
        sink.put(lambda each, found=found: each.add_step(found))  # type: ignore[misc]


def _end(sink: BackgroundSink, ok: bool = True) -> list[str]:
    sink.end(ok)
    return sink.await_end(time.monotonic() + _WAIT_S)


@pytest.fixture
def let_go() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_all_that_is_given_arrives_in_order_before_the_end() -> None:
    inner = _Sink()
    sink = BackgroundSink("test", lambda: inner)
    _give(sink, *range(50))
    assert _end(sink) == []
    assert inner.steps == list(range(50))
    assert inner.ended == [True]


def test_a_failing_sink_is_named_once_and_goes_on() -> None:
    inner = _Sink(fails_at=(1, 2))
    sink = BackgroundSink("test", lambda: inner)
    _give(sink, 0, 1, 2, 3)
    assert _end(sink, ok=False) == [
        "test: ConnectionError: the server is gone; training goes on without it",
        "test: 2 of the run's entries did not get there",
    ]
    assert sink.take_notes() == []
    assert inner.steps == [0, 3]
    assert inner.ended == [False]


def test_a_sink_that_hangs_holds_nobody_up(let_go: threading.Event) -> None:
    inner = _Sink(let_go=let_go)
    sink = BackgroundSink("test", lambda: inner, most_waiting=4)
    _give(sink, 0)
    assert inner.reached.wait(_WAIT_S)
    _give(sink, *range(1, 11))
    assert sink.num_waiting == 4
    sink.end(True)
    begin_s = time.monotonic()
    (note,) = sink.await_end(time.monotonic() + 0.05)
    assert time.monotonic() - begin_s < _WAIT_S / 2
    assert note == "test: 10 of the run's entries did not get there"


def test_what_waits_when_a_full_sink_ends_counts_as_lost(let_go: threading.Event) -> None:
    inner = _Sink(let_go=let_go)
    sink = BackgroundSink("test", lambda: inner, most_waiting=4)
    _give(sink, 0)
    assert inner.reached.wait(_WAIT_S)
    _give(sink, 1, 2, 3, 4)
    sink.end(True)
    let_go.set()
    assert sink.await_end(time.monotonic() + _WAIT_S) == [
        "test: 4 of the run's entries did not get there"
    ]
    assert inner.ended == [True]


def test_a_sink_that_cannot_be_opened_is_named() -> None:
    def refuse() -> _Sink:
        raise PermissionError("no")

    sink = BackgroundSink("test", refuse)
    _give(sink, 0, 1)
    assert _end(sink) == [
        "test: PermissionError: no; training goes on without it",
        "test: 2 of the run's entries did not get there",
    ]
