"""The driver's loop: it hands out step plans one ahead and folds reports into records.

No Ray and no torch here. While a step runs, the next step's plan already waits at every
rank, so the driver's own time hides behind the ranks'.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future

from disagg_train.driver.commitment import Committer
from disagg_train.driver.ports import Group
from disagg_train.driver.signals import Deliver, deferred_signals
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
) -> Iterator[tuple[StepRecord, Reports]]:
    """Run all plans, in order.

    Args:
        groups: every group of the job.
        plans: one per step; with a committer they can be mended.
        deadline_s: of one step.
        pauses_after: steps after which the groups must be idle, because something else comes
            (an evaluation); the plan after such a step is not handed out ahead.
        committer: has ranks decode a plan's samples before the plan is handed out.

    Yields:
        Per step its record, and all ranks' reports ordered by global rank.

    Raises:
        DataError: a bad sample ends the run.
        RankError: a rank died, hung or raised.
    """
    following = _following(iter(plans), committer)
    with deferred_signals() as deliver:
        handed_out = 2 if committer is None else committer.depth
        window: Window = deque(following([], deliver) for _ in range(handed_out))
    running: Running = []
    begin_s = 0.0
    while (plan := window[0]) is not None:
        queued: Running = []
        with deferred_signals() as deliver:
            if not running:
                begin_s, running = time.perf_counter(), _start(groups, window)
            window.append(following(running, deliver))
            window.popleft()
            if window[0] is not None and not pauses_after(plan.step):
                queued = _start(groups, window)
            reports = collect(running, deadline_s, deliver)
        now_s = time.perf_counter()
        yield _record(plan, reports, now_s - begin_s, committer), reports
        begin_s, running = now_s, queued


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
