"""The driver's loop: it hands out step plans one ahead and folds reports into records.

No Ray and no torch here. While a step runs, the next step's plan already waits at every
rank, so the driver's own time hides behind the ranks'.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from disagg_train.driver.commitment import Committer
from disagg_train.driver.keeping import Keeper
from disagg_train.driver.ports import Group
from disagg_train.driver.signals import Deliver, Stop, deferred_signals
from disagg_train.driver.waiting import await_all, late_errors
from disagg_train.errors import RankError, culprit
from disagg_train.metrics.records import RankReport, StepRecord, module_times
from disagg_train.planner.step_plan import StepPlan

Reports = list[RankReport]
Running = list[Future[Sequence[RankReport]]]
Window = deque[StepPlan | None]


def train(
    groups: Sequence[Group],
    plans: Iterable[StepPlan],
    deadline_s: float,
    pauses_after: Callable[[int], bool] = lambda step: False,
    committer: Committer | None = None,
    keeper: Keeper | None = None,
    stop: Stop | None = None,
) -> Iterator[tuple[StepRecord, Reports]]:
    """Run all plans, in order.

    Args:
        groups: every group of the job.
        plans: one per step; with a committer they can be mended.
        deadline_s: of one step.
        pauses_after: steps after which the groups must be idle, because something else comes
            (an evaluation); the plan after such a step is not handed out ahead.
        committer: has ranks decode a plan's samples before the plan is handed out.
        keeper: has ranks keep their state between two steps.
        stop: once it is requested, no further plan is handed out; what was, is completed.

    Yields:
        Per step its record, and all ranks' reports ordered by global rank.

    Raises:
        CheckpointError: one could not be written, and the job says to stop then.
        DataError: a bad sample ends the run.
        RankError: a rank died, hung or raised.
    """
    following = _following(iter(plans), committer)
    hand_out = _HandOut(groups, pauses_after, keeper, stop)
    with deferred_signals() as deliver:
        handed_out = 2 if committer is None else committer.depth
        window: Window = deque(following([], deliver) for _ in range(handed_out))
    running: Running = []
    begin_s, before = 0.0, None
    while (plan := window[0]) is not None and (running or not hand_out.is_over):
        with deferred_signals() as deliver:
            if not running:
                hand_out.keep_after(before, deliver)
                begin_s, running = time.perf_counter(), _start(groups, window)
            window.append(None if hand_out.is_over else following(running, deliver))
            window.popleft()
            queued = hand_out.ahead(window, plan.step, deliver)
            reports = collect(running, deadline_s, hand_out.meanwhile(deliver))
            now_s = time.perf_counter()
            record = _record(plan, reports, now_s - begin_s, committer)
            if keeper is not None:
                keeper.note_step(record)
        yield record, reports
        begin_s, running, before = now_s, queued, plan.step


@dataclass(frozen=True)
class _HandOut:
    """What may come between two steps, or instead of the next one."""

    groups: Sequence[Group]
    pauses_after: Callable[[int], bool]
    keeper: Keeper | None
    stop: Stop | None

    @property
    def is_over(self) -> bool:
        """Whether no further plan is handed out."""
        return self.stop is not None and self.stop.requested is not None

    def keep_after(self, step: int | None, deliver: Deliver) -> None:
        """Order what is due between a step and the next one; nothing before the first one."""
        if self.keeper is not None and step is not None:
            self.keeper.order_after(step, deliver)

    def ahead(self, window: Window, step: int, deliver: Deliver) -> Running:
        """Hand out the plan after ``step``, which runs, unless something comes in between."""
        if window[0] is None or self.is_over or self.pauses_after(step):
            return []
        if self.keeper is not None and self.keeper.pauses_after(step):
            return []
        self.keep_after(step, deliver)
        return _start(self.groups, window)

    def meanwhile(self, deliver: Deliver) -> Deliver:
        """Look in on what is kept; return what is called while a step runs."""
        keeper = self.keeper
        if keeper is None:
            return deliver
        keeper.poll()

        def look_in() -> None:
            deliver()
            keeper.poll()

        return look_in


def _following(
    plans: Iterator[StepPlan], committer: Committer | None
) -> Callable[[Running, Deliver], StepPlan | None]:
    """Return what gives the next plan that may be handed out, while a step runs."""

    def following(running: Running, deliver: Deliver) -> StepPlan | None:
        if committer is None:
            return next(plans, None)
        try:
            return committer.commit(plans, deliver)
        except RankError as error:
            raise culprit([*late_errors(running), error]) from None

    return following


def next_plan(plans: Iterator[StepPlan], committer: Committer | None) -> StepPlan:
    """Return the next of plans that go on for ever, mended where there is a committer."""
    with deferred_signals() as deliver:
        plan = _following(plans, committer)([], deliver)
    assert plan is not None
    return plan


def evaluate(groups: Sequence[Group], plan: StepPlan, deadline_s: float) -> Reports:
    """Run an evaluation on all groups; return all ranks' reports."""
    with deferred_signals() as deliver:
        return collect([group.evaluate(plan) for group in groups], deadline_s, deliver)


def _start(groups: Sequence[Group], window: Window) -> Running:
    """Hand out the first plan of the window, with the one after it if that is known."""
    plan, upcoming = window[0], window[1] if len(window) > 1 else None
    assert plan is not None
    return [group.train(plan, upcoming) for group in groups]


def collect(running: Running, deadline_s: float, deliver: Deliver = lambda: None) -> Reports:
    """Wait for all groups and return their ranks' reports, by global rank."""
    await_all(running, deadline_s, "step", deliver)
    reports = [report for future in running for report in future.result()]
    return sorted(reports, key=lambda report: report.place)


def _record(
    plan: StepPlan, reports: Reports, step_time_s: float, committer: Committer | None
) -> StepRecord:
    agreed = reports[0]
    return StepRecord(
        step=plan.step,
        loss=agreed.loss_sum / max(plan.num_target_tokens, 1),
        grad_norm=agreed.grad_norm,
        lr=plan.learning_rate,
        num_target_tokens=plan.num_target_tokens,
        num_tokens=sum(sample.sequence_tokens for sample in plan.samples),
        step_time_s=step_time_s,
        skipped=agreed.skipped,
        peak_boundary_bytes=max(report.peak_boundary_bytes for report in reports),
        peak_activation_bytes=max(report.peak_activation_bytes for report in reports),
        modules=module_times(reports, list(plan.assignment)),
        loss_scale=agreed.loss_scale,
        bad_samples=committer.bad.take_new() if committer else (),
        num_bad_samples=committer.bad.count if committer else 0,
    )
