"""A group that is no group: answers at once, and remembers what it was asked."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from disagg_train.errors import RankError
from disagg_train.metrics.records import BadSample, RankReport, SnapshotOrder, Stored
from disagg_train.planner.step_plan import StepPlan


def done(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future


def failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


class FakeGroup:
    """Stores at once, unless ``holds_back``: then storing waits for ``let_go``."""

    name = "all"

    def __init__(self, fails_at: int = -1) -> None:
        self.asked: list[tuple[int, int | None]] = []
        self.calls: list[str] = []
        self.orders: list[SnapshotOrder] = []
        self.answer = [Stored(0.01, 0.1), Stored(0.02, 0.05)]
        self.holds_back = False
        self._held: list[Future[Sequence[Stored]]] = []
        self._fails_at = fails_at

    def train(self, plan: StepPlan, upcoming: StepPlan | None) -> Future[Sequence[RankReport]]:
        self.asked.append((plan.step, upcoming.step if upcoming else None))
        self.calls.append(f"train {plan.step}")
        if plan.step == self._fails_at:
            return failed(RankError("raised", "all", 0, cause="raised"))
        return done([RankReport(1, loss_sum=6.0), RankReport(0, loss_sum=6.0)])

    def probe(self, plan: StepPlan) -> Future[Sequence[Sequence[BadSample]]]:
        raise NotImplementedError

    def evaluate(self, plan: StepPlan) -> Future[Sequence[RankReport]]:
        raise NotImplementedError

    def snapshot(self, order: SnapshotOrder) -> Future[Sequence[None]]:
        self.orders.append(order)
        self.calls.append(f"snapshot {order.steps_done}")
        return done([None, None])

    def stored(self, order: SnapshotOrder) -> Future[Sequence[Stored]]:
        self.calls.append(f"stored {order.steps_done}")
        if not self.holds_back:
            return done(self.answer)
        self._held.append(Future())
        return self._held[-1]

    def let_go(self, error: Exception | None = None) -> None:
        for future in self._held:
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(self.answer)
        self._held.clear()
