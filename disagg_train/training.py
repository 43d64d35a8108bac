"""A training run, from its first step or a checkpoint to its last, through failures.

The driver's loop runs steps until something fails. What happens then is here: find out what
failed, make those actors anew, go back to a step of which the whole state is at hand, go on.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Self

from actors.gauges import RayMetrics
from actors.session import LostCapacity, Session
from disagg_train.checkpoint.manifest import CheckpointStore, Manifest
from disagg_train.checkpoint.sharded import CheckpointSource
from disagg_train.config.job import JobConfig
from disagg_train.config.resize import resized, shrunk
from disagg_train.config.secret_values import masked, masked_content
from disagg_train.driver import loop
from disagg_train.driver.commitment import BadSamples, Committer
from disagg_train.driver.history import PlanLog
from disagg_train.driver.keeping import Keeper
from disagg_train.driver.plans import TrainingPlans, training_batches
from disagg_train.driver.recovery import RestartPolicy
from disagg_train.driver.requests import Requests, ResizeRequest
from disagg_train.driver.run_sinks import RunSinks
from disagg_train.driver.signals import Stop, deferred_signals
from disagg_train.driver.skips import SkippedSteps
from disagg_train.driver.waiting import await_all
from disagg_train.engine.setup import StateSource
from disagg_train.errors import ConfigError, RankError
from disagg_train.metrics.events import event
from disagg_train.metrics.measures import Standing
from disagg_train.metrics.records import (
    Evaluation,
    RankReport,
    SnapshotOrder,
    StepRecord,
    mean_busy_s,
)
from disagg_train.metrics.run_files import RunFiles
from disagg_train.planner.drift import DriftMonitor
from disagg_train.planner.step_plan import SampleSize
from disagg_train.schedule.file import save_schedule
from disagg_train.schedule.ops import OpKind

_POLL_S = 0.1

OpenSession = Callable[[JobConfig, StateSource | None], Session]
"""Sets a job up on actors, with the state that they begin with."""
Evaluate = Callable[[Session, int], Evaluation]
"""Scores held-out samples after so many steps."""


class TrainingRun:
    """Runs a job's steps; a context manager that ends what it began.

    Args:
        job: the job.
        sizes: of all training samples.
        bad: samples that were taken out.
        store: the run's checkpoints.
        start: checkpoint to go on from; None begins anew.
        start_folder: where that lies.
        open_session: sets the job up; its session may hold a job that was changed to fit.
        evaluate: scores held-out samples.
    """

    def __init__(
        self,
        job: JobConfig,
        sizes: Sequence[SampleSize],
        bad: BadSamples,
        store: CheckpointStore,
        start: Manifest | None,
        start_folder: str,
        open_session: OpenSession,
        evaluate: Evaluate,
    ) -> None:
        self._sizes, self._bad, self._store = sizes, bad, store
        self._evaluate, self._output = evaluate, Path(job.output)
        self._steps_done = 0 if start is None else start.step
        self._requests = Requests(self._output)
        self._requests.clear()
        self._stop = Stop(job.recovery.grace_s)
        self._policy = RestartPolicy(job.recovery)
        self._skips = SkippedSteps(job.train.max_skipped)
        self._drift = DriftMonitor.of(job)
        self._notes: list[str] = []
        self._last_copy = self._steps_done
        self._pauses_for_requests = -1
        self.files = RunFiles(self._output, self._steps_done, job.train.list_samples)
        self._began_with = None if start is None else (start, start_folder)
        source = None if start is None else CheckpointSource(start_folder, start.step)
        self._session = open_session(job, source)
        try:
            self._plans = self._plans_from(None if start is None else start.sampler)
            in_store = start is not None and start_folder == self._address(start)
            self._keeper = Keeper(
                self.job,
                store,
                self._manifest,
                self.keeps_copies,
                shares_cores=self._session.on_cpus,
                resumed_from=self._steps_done if in_store else None,
            )
            self._sinks = self._open_sinks()
        except BaseException:
            self._session.close()
            raise

    @property
    def job(self) -> JobConfig:
        """The job as it runs now."""
        return self._session.job

    @property
    def keeps_copies(self) -> bool:
        """Whether memory holds copies of the state."""
        return self.job.recovery.restart == "group"

    @property
    def restarts(self) -> int:
        """How often actors were made anew after a failure."""
        return self._policy.num_restarts

    def ask_to_stop(self) -> None:
        """Have the run end its step and save, as a first Ctrl-C does; ``steps`` then raises."""
        self._stop.ask()

    def take_notes(self) -> list[str]:
        """Return what people should know, and has not been returned before."""
        notes, self._notes = self._notes + self._keeper.notes, []
        self._keeper.notes.clear()
        return [masked(note) for note in notes] + self._sinks.take_notes()

    def _tell(
        self, text: str, level: int = logging.INFO, group: str | None = None, rank: int = -1
    ) -> None:
        """Tell people, and the run's log."""
        self._notes.append(text)
        about = group if group in self.job.groups else None
        event(text, self._steps_done, about, rank if rank >= 0 else None, level, is_note=True)

    def _tell_of_session(self) -> None:
        if note := self._session.take_note():
            self._tell(note)

    def steps(self) -> Iterator[StepRecord]:
        """Train to the end; yield a record after every step.

        After a failure the steps since the restored one are run, and yielded, once more.

        Raises:
            RankError: a rank failed and the run may not, or cannot, go on.
            CheckpointError: a checkpoint cannot be written.
            RunStopped: the run was asked to stop.
        """
        self._tell_of_session()
        with self._stop as stop:
            while True:
                try:
                    yield from self._attempt(stop)
                    if stop.requested is None and self._steps_done < self.job.train.steps:
                        self._resize()
                        continue
                    self._save()
                    break
                except RankError as error:
                    self._recover(error, stop)
            if stop.requested is not None:
                done = self._steps_done
                kept = f"after {done} steps; a checkpoint is saved" if done else "before any step"
                self._tell(f"stopped {kept}")
                stop.raise_it("" if done else "the run was asked to stop before any step")
        self.files.write_trace(self._session.row_names)
        self._sinks.close(ok=True)

    def _attempt(self, stop: Stop) -> Iterator[StepRecord]:
        """Run steps until the last, a failure, a request, or a wish to stop."""
        session, job = self._session, self.job
        self._plans.rewind(self._steps_done)  # some may be drawn ahead
        self._keeper.attach(session.groups)
        save_schedule(session.schedule, self._output / "schedule.yaml")
        if self._steps_done and self._evaluates_after(self._steps_done - 1):
            self._evaluate_if_missing()
        steps = loop.train(
            session.groups,
            self._plans,
            job.deadlines.step_s,
            self._pauses_after,
            committer_of(session, self._bad),
            self._keeper,
            stop,
        )
        for record, reports in steps:
            self._note(record, reports)
            if self._evaluates_after(record.step):
                self._add_evaluation()
            with stop.uncounted():
                yield record
            if record.step == self._pauses_for_requests and stop.requested is None:
                return

    def _note(self, record: StepRecord, reports: Sequence[RankReport]) -> None:
        plan = self._plans.plan(record.step)
        self.files.add_step(record, [sample.key for sample in plan.samples])
        if self.job.train.is_traced(record.step):
            self.files.add_trace(record.step, reports, plan.as_dict())
            if not self.job.train.is_traced(record.step + 1):
                self.files.write_trace(self._session.row_names)
        self._steps_done = record.step + 1
        event(record.in_words, record.step)
        self._policy.completed(record.step)
        self._skips.note(record, plan)
        self._watch_drift(reports)
        self._sinks.add_step(record, reports, plan.samples, self._standing())
        self._forget_plans()

    def _open_sinks(self) -> RunSinks:
        job = self.job
        skipped = [record.step for record in self.files.records if record.skipped]
        more = {"ray": partial(RayMetrics, job.name)} if job.sinks.ray else {}
        return RunSinks(job, self._steps_done, skipped, self._session.gpu_kinds, more)

    def _standing(self) -> Standing:
        keeper, done = self._keeper, self._steps_done
        began = self._began_with[0].step if self._began_with else 0
        kept = max(keeper.newest_copy or 0, keeper.newest_checkpoint or 0, began)
        queues = {"plans": self._plans.num_drawn(done), "storing": int(keeper.is_storing)}
        return Standing(self.restarts, 0, keeper.num_written, done - kept, queues)

    def _watch_drift(self, reports: Sequence[RankReport]) -> None:
        drift, names = self._drift, list(self.job.modules)
        if drift is not None and (note := drift.observe(mean_busy_s(reports, names))):
            self._tell(note, logging.WARNING)

    def _forget_plans(self) -> None:
        """Keep the plans since the copy before the newest: of that one, a rank's may be lost."""
        keeper = self._keeper
        newest = keeper.newest_copy if self.keeps_copies else self._steps_done
        if newest is None:
            newest = keeper.newest_checkpoint
        if newest is not None and newest != self._last_copy:
            self._plans.forget(min(self._last_copy, newest))
            self._last_copy = newest

    def _pauses_after(self, step: int) -> bool:
        """Return whether the ranks must be idle after a step; asked before the next is sent."""
        if self._requests.waiting:
            self._pauses_for_requests = step
        return self._evaluates_after(step) or step == self._pauses_for_requests

    def _evaluates_after(self, step: int) -> bool:
        evaluation, done = self.job.train.evaluation, step + 1
        if not evaluation.samples:
            return False
        last = done == self.job.train.steps
        return last or bool(evaluation.every_steps and done % evaluation.every_steps == 0)

    def _evaluate_if_missing(self) -> None:
        """Make up for an evaluation that a failure or the end of an earlier start prevented."""
        if all(each.step != self._steps_done for each in self.files.evaluations):
            self._add_evaluation()

    def _add_evaluation(self) -> None:
        found = self._evaluate(self._session, self._steps_done)
        self.files.add_evaluation(found)
        self._sinks.add_evaluation(found)
        said = f"held out: loss {found.loss:.6g}, exact match {found.exact_match:.3f}"
        event(said, self._steps_done)

    # Checkpoints.

    def _plans_from(self, sampler: dict[str, object] | None) -> PlanLog:
        batches = training_batches(self.job, self._sizes)
        if sampler is not None:
            batches.restore(sampler)
        return PlanLog(TrainingPlans(self.job, batches, first_step=self._steps_done))

    def _manifest(self, steps_done: int) -> Manifest:
        return Manifest(
            step=steps_done,
            job=self.job.model_dump(mode="json"),
            files={},
            sampler=self._plans.sampler_state(steps_done),
            bad_samples=[{"key": bad.key, "reason": bad.reason} for bad in self._bad],
        )

    def _save(self) -> None:
        """Write the last checkpoint, unless it is there already, or nothing was trained."""
        with deferred_signals() as deliver:
            if self._steps_done:
                self._keeper.save(self._steps_done, deliver)

    # Failures.

    def _recover(self, error: RankError, stop: Stop) -> None:
        """Go back to a step whose state is at hand, with new actors for those that failed.

        Raises:
            RankError: the run may not go on.
        """
        while True:
            failure = self._session.diagnose(error, self._steps_done)
            report = self.files.write_failure(
                masked_content(failure.as_dict()), masked(failure.text)
            )
            restart = self._policy.after(failure)
            blamed = failure.error if isinstance(failure.error, RankError) else error
            said = f"{failure.headline}; the whole report is in {report}"
            self._tell(said, logging.ERROR, blamed.group, blamed.rank)
            _pause(restart.pause_s, stop)
            if stop.requested is not None:
                raise failure.error
            groups = failure.groups if restart.kind == "group" else tuple(self.job.groups)
            try:
                self._go_back(groups)
                return
            except RankError as another:
                error = another

    def _go_back(self, groups: Sequence[str]) -> None:
        """Set all ranks up with the newest state there is: in memory, a checkpoint, or none."""
        copy, checkpoint = self._session.newest_copy(), None
        if copy is None or copy.steps_done < (self._keeper.newest_checkpoint or 0):
            checkpoint = self._newest_checkpoint()
        source: StateSource | None = copy
        if copy is not None and (checkpoint is None or checkpoint[0].step <= copy.steps_done):
            self._steps_done, origin = copy.steps_done, "copies in memory"
        elif checkpoint is not None:
            manifest, folder = checkpoint
            source, origin = CheckpointSource(folder, manifest.step), "a checkpoint"
            self._steps_done = manifest.step
            self._plans = self._plans_from(manifest.sampler)
        else:
            self._steps_done, origin = 0, "the start"
            self._plans = self._plans_from(None)
        self.files.rewind(self._steps_done)
        self._sinks.rewind(self._steps_done)
        self._renew(self.job, groups, source)
        self._tell(
            f"group {', '.join(groups)} was started again; training goes on after step "
            f"{self._steps_done}, from {origin}"
        )

    def _newest_checkpoint(self) -> tuple[Manifest, str] | None:
        """Return the newest sound checkpoint with its folder, else what the run began with."""
        manifest, notes = self._store.newest_sound()
        for note in notes:
            self._tell(note, logging.WARNING)
        return self._began_with if manifest is None else (manifest, self._address(manifest))

    def _address(self, manifest: Manifest) -> str:
        return self._store.address(manifest.step)

    def _renew(self, job: JobConfig, groups: Sequence[str], source: StateSource | None) -> None:
        """Set all ranks up; a group that lost a node for good goes on with fewer ranks."""
        try:
            self._session.renew(job, groups, source)
        except LostCapacity as lost:
            smaller = shrunk(job, lost.group, lost.ranks)
            if smaller is None:
                raise
            self._tell(
                f"{lost}; group {lost.group!r} goes on with {smaller.groups[lost.group].ranks} "
                f"ranks and less data parallelism",
                logging.WARNING,
                lost.group,
            )
            self._renew(smaller, tuple({*groups, lost.group}), source)
        self._tell_of_session()
        self._plans.lay_out(self.job)
        self._sinks.lay_out(self.job)
        self._drift = DriftMonitor.of(self.job)

    # Requests.

    def _resize(self) -> None:
        """Give groups the numbers of ranks that were asked for, from the live state."""
        for request in self._requests.take():
            self._resize_one(request)

    def _resize_one(self, request: ResizeRequest) -> None:
        try:
            job = resized(self.job, request.group, request.ranks)
        except ConfigError as error:
            self._tell(f"not resized: {error}", logging.WARNING)
            return
        self._renew(job, (request.group,), self._live_state())
        self._tell(
            f"group {request.group!r} has {request.ranks} ranks after step {self._steps_done}",
            group=request.group,
        )

    def _live_state(self) -> StateSource:
        """Return the state of this moment: in memory, or where none is kept, a checkpoint."""
        with deferred_signals() as deliver:
            self._keeper.finish(deliver)
            if not self.keeps_copies:
                self._keeper.save(self._steps_done, deliver)
                return CheckpointSource(self._store.address(self._steps_done), self._steps_done)
            order = SnapshotOrder(self._steps_done, to_vaults=True)
            groups, deadline_s = self._session.groups, self.job.deadlines.storing_s
            asked = [group.snapshot(order) for group in groups]
            stored = [group.stored(order) for group in groups]
            await_all([*asked, *stored], deadline_s, "copying of the state", deliver)
        copy = self._session.newest_copy()
        if copy is None or copy.steps_done != self._steps_done:
            raise RankError("the vaults did not take the state", "any", -1)
        return copy

    def close(self) -> None:
        """End the actors and close the files; what was traced is kept."""
        with contextlib.ExitStack() as ending:
            ending.callback(self._sinks.close)
            ending.callback(self._session.close)
            ending.callback(self.files.close)
            if self.files.has_new_traces:
                with contextlib.suppress(OSError):  # why the run ends is the error to tell
                    self.files.write_trace(self._session.row_names)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pause(seconds: float, stop: Stop) -> None:
    until_s = time.monotonic() + seconds
    while stop.requested is None and (left_s := until_s - time.monotonic()) > 0:
        time.sleep(min(left_s, _POLL_S))


def committer_of(session: Session, bad: BadSamples) -> Committer | None:
    """Return what takes bad samples out, if that is the job's policy."""
    job = session.job
    if job.data.on_bad_sample == "fail":
        return None
    kinds = {op.kind for ops in session.schedule.ops for op in ops}
    return Committer(session.groups, bad, job.deadlines.step_s, OpKind.RUN_AHEAD in kinds)
