"""A hang, a broken connection or news of a death ends in one error and one abort each."""

import threading
import time
from collections.abc import Callable

import pytest

from disagg_train.boundary.watchdog import Watch, Watchdog, bounded
from disagg_train.errors import BoundaryError

_WHAT = "microbatch 3, receive from rank 7"
_SOON_S = 0.05
_NEVER_S = 1e6


class FakeEvent:
    def __init__(self, fired: bool = False) -> None:
        self.fired, self.queries = fired, 0

    def query(self) -> bool:
        self.queries += 1
        return self.fired


class FakeConnection:
    def __init__(self, name: str = "vision->language/forward/e1") -> None:
        self.name, self.aborts, self.looks = name, 0, 0
        self.error: Exception | None = None
        self.at_abort: Callable[[], object] = lambda: None

    def check_async_error(self) -> None:
        self.looks += 1
        if self.error is not None:
            raise self.error

    def abort(self) -> None:
        self.aborts += 1
        self.at_abort()


@pytest.fixture
def watchdog() -> Watchdog:
    return Watchdog(poll_s=0.005, abort_s=0.2)


def _watch(
    watchdog: Watchdog,
    connection: FakeConnection,
    deadline_s: float = _SOON_S,
    done: FakeEvent | None = None,
    awaited: FakeEvent | None = None,
) -> Watch:
    watchdog.add(connection)
    watch = Watch(connection, _WHAT, done or FakeEvent(), deadline_s, awaited)
    watchdog.watch(watch)
    return watch


def _until(true: Callable[[], object], deadline_s: float = 5.0) -> None:
    end_s = time.monotonic() + deadline_s
    while not true():
        assert time.monotonic() < end_s, "nothing happened before the deadline"
        time.sleep(0.002)


def test_an_exchange_that_is_waited_for_too_long_is_aborted_once_and_named(
    watchdog: Watchdog,
) -> None:
    connection = FakeConnection()
    _watch(watchdog, connection, awaited=FakeEvent(fired=True))
    _until(lambda: connection.aborts)
    with pytest.raises(BoundaryError) as caught:
        watchdog.check()
    assert str(caught.value).startswith(f"vision->language/forward/e1: {_WHAT}: not done 0.05 s")
    time.sleep(0.1)
    assert connection.aborts == 1


def test_the_deadline_counts_from_the_moment_a_stream_waits(watchdog: Watchdog) -> None:
    connection, awaited = FakeConnection(), FakeEvent()
    watch = _watch(watchdog, connection)
    _until(lambda: connection.looks > 30)
    assert not watchdog.failure
    watch.awaited = awaited
    _until(lambda: awaited.queries > 30)
    assert not watchdog.failure
    awaited.fired = True
    _until(lambda: watchdog.failure)


def test_what_the_abort_sets_free_finds_the_reason(watchdog: Watchdog) -> None:
    connection, seen = FakeConnection(), []
    connection.at_abort = lambda: seen.append(watchdog.failure)
    _watch(watchdog, connection, awaited=FakeEvent(fired=True))
    _until(lambda: seen)
    assert _WHAT in seen[0]


def test_a_connection_that_broke_is_reported_before_any_deadline(watchdog: Watchdog) -> None:
    connection = FakeConnection()
    connection.error = RuntimeError("NCCL_ERROR_REMOTE_ERROR")
    _watch(watchdog, connection, _NEVER_S)
    _until(lambda: connection.aborts)
    assert "the connection reports NCCL_ERROR_REMOTE_ERROR" in watchdog.failure


def test_an_error_of_the_gpu_is_reported(watchdog: Watchdog) -> None:
    connection, done = FakeConnection(), FakeEvent()
    done.query = lambda: 1 / 0  # type: ignore[method-assign]
    _watch(watchdog, connection, done=done)
    _until(lambda: connection.aborts)
    assert "the GPU reports division by zero" in watchdog.failure


def test_the_first_failure_ends_every_connection_and_stays_the_reason(watchdog: Watchdog) -> None:
    hanging, bystander = FakeConnection(), FakeConnection("another/e1")
    watchdog.add(bystander)
    _watch(watchdog, hanging, awaited=FakeEvent(fired=True))
    _until(lambda: hanging.aborts and bystander.aborts)
    watchdog.fail("later news")
    assert watchdog.failure.startswith(hanging.name)


def test_an_abort_that_sticks_leaves_the_kill_to_the_driver(watchdog: Watchdog) -> None:
    stuck, after, release = FakeConnection(), FakeConnection("after/e1"), threading.Event()
    stuck.at_abort = lambda: release.wait(5.0)
    _watch(watchdog, stuck, awaited=FakeEvent(fired=True))
    watchdog.add(after)
    _until(lambda: "must be killed" in watchdog.failure)
    assert f"aborting {stuck.name} did not return in 0.2 s" in watchdog.failure
    _until(lambda: after.aborts)
    release.set()


def test_news_of_a_death_aborts_at_once(watchdog: Watchdog) -> None:
    connection = FakeConnection()
    _watch(watchdog, connection, _NEVER_S)
    watchdog.fail("group 'encoders' rank 1 died")
    _until(lambda: connection.aborts)
    with pytest.raises(BoundaryError, match="group 'encoders' rank 1 died"):
        watchdog.check()


def test_nothing_under_way_costs_nothing(watchdog: Watchdog) -> None:
    connection = FakeConnection()
    watchdog.add(connection)
    watchdog.check()
    assert watchdog._thread is None
    _watch(watchdog, connection, done=FakeEvent(fired=True))
    _until(lambda: not watchdog._watches)
    looks = connection.looks
    time.sleep(0.1)
    assert connection.looks == looks
    watchdog.close()
    _until(lambda: watchdog._thread is not None and not watchdog._thread.is_alive())


def test_a_connection_that_was_closed_is_left_alone(watchdog: Watchdog) -> None:
    closed, other = FakeConnection(), FakeConnection("other/e1")
    _watch(watchdog, closed, awaited=FakeEvent(fired=True), deadline_s=0.2)
    watchdog.forget(closed)
    _watch(watchdog, other, awaited=FakeEvent(fired=True))
    _until(lambda: other.aborts)
    assert not closed.aborts


def test_a_bounded_call_says_whether_it_ended_and_raises_what_it_raised() -> None:
    release = threading.Event()
    assert bounded(lambda: None, 5.0)
    assert not bounded(lambda: release.wait(5.0) and None, 0.05)
    release.set()
    with pytest.raises(ZeroDivisionError):
        bounded(lambda: 1 / 0 and None, 5.0)
