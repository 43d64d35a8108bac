"""The driver's loop against a group that is no group: what is handed out, and when."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from disagg_train.driver import loop
from disagg_train.driver.signals import Stop, deferred_signals
from disagg_train.errors import RankError
from disagg_train.planner.in_order import in_order
from disagg_train.planner.step_plan import SampleSize, StepPlan
from tests.unit.driver.fake_group import FakeGroup


def _plans(count: int) -> list[StepPlan]:
    samples = (SampleSize(0, 5, 2), SampleSize(1, 7, 1))
    return [StepPlan(step, samples, {"language": in_order(2, 1, 1)}, 0.1) for step in range(count)]


def test_every_plan_is_handed_out_once_with_the_next_one_beside_it() -> None:
    group = FakeGroup()
    records = [record for record, _ in loop.train([group], _plans(4), 5.0)]
    assert group.asked == [(0, 1), (1, 2), (2, 3), (3, None)]
    assert [record.step for record in records] == [0, 1, 2, 3]
    assert records[0].loss == 2.0
    assert records[0].num_tokens == 12


def test_the_next_plan_is_handed_out_before_a_step_is_done() -> None:
    group = FakeGroup()
    next(loop.train([group], _plans(3), 5.0))
    assert [step for step, _ in group.asked] == [0, 1]


def test_no_plan_is_ahead_where_the_driver_pauses() -> None:
    group = FakeGroup()
    steps = loop.train([group], _plans(3), 5.0, pauses_after=lambda step: step == 0)
    next(steps)
    assert [step for step, _ in group.asked] == [0]
    assert [record.step for record, _ in steps] == [1, 2]


def _interrupt(stop: Stop) -> None:
    stop.requested = signal.SIGINT


def test_after_a_request_to_stop_only_what_was_handed_out_is_completed() -> None:
    group, stop = FakeGroup(), Stop(30.0)
    steps = loop.train([group], _plans(6), 5.0, stop=stop)
    next(steps)
    _interrupt(stop)
    assert [record.step for record, _ in steps] == [1]
    assert [step for step, _ in group.asked] == [0, 1]


def test_after_a_request_to_stop_at_a_pause_no_step_comes() -> None:
    group, stop = FakeGroup(), Stop(30.0)
    steps = loop.train([group], _plans(6), 5.0, lambda step: True, stop=stop)
    next(steps)
    _interrupt(stop)
    assert not list(steps)
    assert [step for step, _ in group.asked] == [0]


def test_reports_come_in_the_order_of_global_ranks() -> None:
    _, reports = next(loop.train([FakeGroup()], _plans(1), 5.0))
    assert [report.place for report in reports] == [0, 1]


def test_a_failure_reaches_the_caller() -> None:
    with pytest.raises(RankError, match="group 'all' rank 0: raised"):
        list(loop.train([FakeGroup(fails_at=1)], _plans(3), 5.0))


def test_a_death_is_blamed_before_those_who_lost_their_peer() -> None:
    lost, died = Future(), Future()
    lost.set_exception(RankError("lost contact", "language", 0, cause="peer"))
    died.set_exception(RankError("the actor died", "encoders", 1, cause="died"))
    with pytest.raises(RankError, match="encoders"):
        loop.collect([lost, died], 5.0)


def test_a_step_that_never_ends_is_an_error_at_its_deadline() -> None:
    with pytest.raises(RankError, match=r"no answer for 0\.1 s"):
        loop.collect([Future()], 0.1)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as a terminal has it: a shell's background jobs start with SIGINT ignored."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


@pytest.mark.usefixtures("ctrl_c")
def test_a_signal_ends_the_wait_for_a_step() -> None:
    sender = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    sender.start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt), deferred_signals() as deliver:
        loop.collect([Future()], 30.0, deliver)
    assert time.monotonic() - begin < 5.0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("ctrl_c")
def test_a_signal_does_not_land_in_the_middle_of_a_step() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt), deferred_signals():
        os.kill(os.getpid(), signal.SIGINT)
        reached = True
    assert reached
