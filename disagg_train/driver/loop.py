"""The driver's loop: it hands out step plans one ahead and folds reports into records.

No Ray and no torch here. While a step runs, the next step's plan already waits at every
rank, so the driver's own time hides behind the ranks'.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import Any

from disagg_train.driver.ports import Group
from disagg_train.driver.signals import Deliver, deferred_signals
from disagg_train.errors import RankError, culprit
from disagg_train.metrics.records import RankReport, StepRecord, module_times
from disagg_train.planner.step_plan import StepPlan

Reports = list[RankReport]
Running = list[Future[Sequence[RankReport]]]
_BLAME_S = 5.0
_POLL_S = 0.2


def train(
    groups: Sequence[Group],
    plans: Iterable[StepPlan],
    deadline_s: float,
    pauses_after: Callable[[int], bool] = lambda step: False,
) -> Iterator[tuple[StepRecord, Reports]]:
    """Run all plans, in order.

    Args:
        groups: every group of the job.
        plans: one per step.
        deadline_s: of one step.
        pauses_after: steps after which the groups must be idle, because something else comes
            (an evaluation); the plan after such a step is not handed out ahead.

    Yields:
        Per step its record, and all ranks' reports ordered by global rank.

    Raises:
        RankError: a rank died, hung or raised.
    """
    running: Running | None = None
    begin_s = 0.0
    for plan, upcoming, following in _windows(plans):
        queued = None
        with deferred_signals() as deliver:
            if running is None:
                begin_s, running = time.perf_counter(), _start(groups, plan, upcoming)
            if upcoming is not None and not pauses_after(plan.step):
                queued = _start(groups, upcoming, following)
            reports = collect(running, deadline_s, deliver)
        now_s = time.perf_counter()
        yield _record(plan, reports, now_s - begin_s), reports
        begin_s, running = now_s, queued


def _windows(
    plans: Iterable[StepPlan],
) -> Iterator[tuple[StepPlan, StepPlan | None, StepPlan | None]]:
    """Yield every plan with the two that follow it, None past the end."""
    ahead = iter(plans)
    window = [next(ahead, None) for _ in range(3)]
    while window[0] is not None:
        yield window[0], window[1], window[2]
        window = [*window[1:], next(ahead, None)]


def evaluate(groups: Sequence[Group], plan: StepPlan, deadline_s: float) -> Reports:
    """Run an evaluation on all groups; return all ranks' reports."""
    with deferred_signals() as deliver:
        return collect([group.evaluate(plan) for group in groups], deadline_s, deliver)


def _start(groups: Sequence[Group], plan: StepPlan, upcoming: StepPlan | None) -> Running:
    return [group.train(plan, upcoming) for group in groups]


def collect(running: Running, deadline_s: float, deliver: Deliver = lambda: None) -> Reports:
    """Wait for all groups and return their ranks' reports, by global rank."""
    await_all(running, deadline_s, "step", deliver)
    reports = [report for future in running for report in future.result()]
    return sorted(reports, key=lambda report: report.place)


def await_all(
    running: Sequence[Future[Any]], deadline_s: float, what: str, deliver: Deliver = lambda: None
) -> None:
    """Wait for all groups.

    A rank that fails takes its peers along with errors of their own; all get a moment to
    report, and the culprit's error is the one that is raised.

    Args:
        running: what each group is at.
        deadline_s: for all of them together.
        what: what they are at, for the error.
        deliver: called between waits, for signals that are held back.

    Raises:
        RankError: a rank failed, or the deadline passed.
    """
    until_s = time.monotonic() + deadline_s
    done, pending = wait(running, timeout=0.0, return_when=FIRST_EXCEPTION)
    while pending and not _errors(done) and (left_s := until_s - time.monotonic()) > 0:
        deliver()
        done, pending = wait(running, min(_POLL_S, left_s), return_when=FIRST_EXCEPTION)
    if failed := _errors(done):
        late, _ = wait(pending, timeout=_BLAME_S)
        raise culprit(failed + _errors(late))
    if pending:
        raise RankError(f"no answer for {deadline_s:g} s; the {what} hangs", "any", -1)


def _errors(futures: Iterable[Future[Any]]) -> list[BaseException]:
    return [error for future in futures if (error := future.exception()) is not None]


def _record(plan: StepPlan, reports: Reports, step_time_s: float) -> StepRecord:
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
    )
