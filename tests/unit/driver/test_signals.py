"""A first signal asks, a second one ends, and so does the end of the grace period."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from disagg_train.driver.signals import Stop, deferred_signals
from disagg_train.errors import RunStopped


@pytest.fixture(autouse=True)
def terminal() -> Iterator[None]:
    """Handlers as a program has them: a shell's background jobs start with SIGINT ignored."""

    def end(*_: object) -> None:
        raise SystemExit(143)

    inherited = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGTERM: signal.signal(signal.SIGTERM, end),
    }
    yield
    for number, handler in inherited.items():
        signal.signal(number, handler)


def _send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_only_asks(number: signal.Signals) -> None:
    with Stop(30.0) as stop:
        assert stop.requested is None
        with deferred_signals() as deliver:
            _send(number)
            deliver()
        with deferred_signals():
            pass
        assert stop.requested == number
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_who_stopped_raises_the_signal_at_the_end(
    number: signal.Signals, raised: type[BaseException]
) -> None:
    with pytest.raises(raised), Stop(30.0) as stop:
        _send(number)
        stop.raise_it()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_signal_is_delivered_where_signals_are() -> None:
    reached = 0
    with pytest.raises(KeyboardInterrupt), Stop(30.0), deferred_signals() as deliver:
        _send(signal.SIGINT)
        deliver()
        reached = 1
        _send(signal.SIGINT)
        reached = 2
        deliver()
        reached = 3
    assert reached == 2


def test_a_second_signal_that_is_held_back_is_delivered_at_the_end_of_that() -> None:
    reached = False
    with pytest.raises(SystemExit), Stop(30.0):
        _send(signal.SIGINT)
        with deferred_signals():
            _send(signal.SIGTERM)
            reached = True
    assert reached


def test_a_failure_does_not_lose_the_second_signal() -> None:
    with pytest.raises(KeyboardInterrupt), Stop(30.0), deferred_signals():
        _send(signal.SIGINT)
        _send(signal.SIGINT)
        raise ValueError


def test_where_nothing_holds_it_back_a_second_signal_is_delivered_at_once() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt), Stop(30.0):
        _send(signal.SIGINT)
        reached = True
        _send(signal.SIGINT)
        reached = False
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_first_signal_is_delivered_when_the_grace_period_is_over() -> None:
    now_s = 100.0
    with pytest.raises(SystemExit), Stop(25.0, lambda: now_s) as stop:
        _send(signal.SIGTERM)
        now_s = 125.0
        stop.deliver()
        now_s = 125.1
        stop.deliver()
    assert now_s == 125.1


def test_time_that_passes_outside_the_run_is_not_of_the_grace() -> None:
    now_s = 100.0
    with pytest.raises(SystemExit), Stop(25.0, lambda: now_s) as stop:
        with stop.uncounted():
            now_s = 200.0
            _send(signal.SIGTERM)
            now_s = 300.0
        now_s = 325.0
        stop.deliver()
        now_s = 325.1
        stop.deliver()
    assert now_s == 325.1


def test_a_run_that_took_longer_than_the_grace_says_that_nobody_waited() -> None:
    now_s, said = 100.0, r"longer than recovery\.grace_s.*without waiting"
    with pytest.raises(RunStopped, match=said), Stop(25.0, lambda: now_s) as stop:
        stop.ask()
        now_s = 126.0
        stop.deliver()


def test_after_the_usual_handler_was_called_it_is_the_usual_one_again() -> None:
    with Stop(30.0) as stop:
        _send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            stop.raise_it()
        with pytest.raises(KeyboardInterrupt), deferred_signals():
            _send(signal.SIGINT)


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Stop(30.0) as stop:
        _send(signal.SIGINT)
        assert stop.requested is None
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_handler_that_only_takes_note_is_not_the_end() -> None:
    """Event loops have such handlers."""
    noted: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))
    with pytest.raises(KeyboardInterrupt), Stop(30.0) as stop:
        _send(signal.SIGINT)
        assert noted == []
        stop.raise_it()
    assert noted == [signal.SIGINT]


def test_a_handler_that_came_later_is_taken_over_before_anything_is_held_back() -> None:
    """A notebook's kernel sets its own for every cell; a run may go on in another one."""

    def next_cells(*_: object) -> None:
        raise KeyboardInterrupt

    with Stop(30.0) as stop:
        signal.signal(signal.SIGINT, next_cells)
        with deferred_signals():
            _send(signal.SIGINT)
        assert stop.requested == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is next_cells


def test_a_handler_that_came_later_stays_where_the_run_ends() -> None:
    with Stop(30.0):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_spoken_wish_is_a_first_signal_that_raises_an_error_of_its_own() -> None:
    with pytest.raises(RunStopped), Stop(30.0) as stop:
        stop.ask()
        assert stop.requested is not None
        stop.raise_it()
    with pytest.raises(KeyboardInterrupt), Stop(30.0) as stop:
        stop.ask()
        _send(signal.SIGINT)


def test_another_thread_leaves_all_handlers_alone() -> None:
    seen: list[object] = []

    def run() -> None:
        with Stop(30.0) as stop, deferred_signals() as deliver:
            deliver()
            seen.extend([stop.requested, signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(5.0)
    assert seen == [None, signal.default_int_handler]
