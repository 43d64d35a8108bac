"""The Python API: ``Trainer("job.yaml").run()``, in scripts and notebooks."""

import contextlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console

from actors.board import announcing
from actors.cluster import RayConnection
from actors.pool import ActorPool
from actors.session import Session, on_cluster
from disagg_train.checkpoint.beginning import find_beginning, make_way, started_from
from disagg_train.checkpoint.manifest import CheckpointStore
from disagg_train.checkpoint.reader import CheckpointReader
from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job, save_job
from disagg_train.config.resize import resized
from disagg_train.config.secret_values import masked
from disagg_train.data.index import usable_sizes
from disagg_train.data.run_pictures import draw_run
from disagg_train.data.source import DataSource, open_source
from disagg_train.driver import loop
from disagg_train.driver.commitment import BadSamples, listed_in
from disagg_train.driver.cost_sources import by_size, pools_named
from disagg_train.driver.evaluation import fold_evaluation
from disagg_train.driver.parity import Parity
from disagg_train.driver.planning import Answer, plan_in_place, plan_job
from disagg_train.driver.plans import EvaluationPlans
from disagg_train.driver.requests import Requests, ResizeRequest
from disagg_train.driver.run_sinks import check_sinks
from disagg_train.driver.signals import deferred_signals
from disagg_train.errors import ConfigError
from disagg_train.metrics.board import RunFacts
from disagg_train.metrics.events import Told, attached, run_log
from disagg_train.metrics.frame import step_frame
from disagg_train.metrics.page import Page
from disagg_train.metrics.progress import progress_on
from disagg_train.metrics.records import BadSample, Evaluation, StepRecord
from disagg_train.run_view import Steps, report_of
from disagg_train.training import OpenSession, TrainingRun, committer_of
from disagg_train.verification import check_verifiable, verify

if TYPE_CHECKING:
    from pandas import DataFrame


class Trainer:
    """Trains a job on Ray actor groups, and closes what it opened.

    Args:
        job: path of a job file, its parsed content, or a validated job.
        overrides: ``a.b.c=value`` each.
        address: of a running Ray cluster (``auto`` for this machine's); None starts a local one.
        resume: ``auto`` goes on from the newest sound checkpoint of the job's own output, and
            begins anew where there is none; a folder names a checkpoint. The layout, the groups
            and their place may be others than the checkpoint's.
        overwrite: whether beginning anew may remove checkpoints that are there.

    Raises:
        CheckpointError: the checkpoint to resume is damaged.
        ConfigError: the job breaks a rule, or is another than the checkpoint's.
        DataError: the data set cannot be used.
    """

    def __init__(
        self,
        job: str | Path | Mapping[str, Any] | JobConfig,
        overrides: Sequence[str] = (),
        address: str | None = None,
        resume: str | Path | None = None,
        overwrite: bool = False,
    ) -> None:
        self.job, self._start_step = started_from(load_job(job, overrides))
        self.source: DataSource = open_source(self.job)
        self._train_sizes, bad = usable_sizes(self.source, self.job, "train")
        in_index = getattr(self.source, "bad_samples", ())
        self.bad = BadSamples(self.job.data.max_bad_samples, [*in_index, *bad])
        self.store = CheckpointStore(self.job.checkpoint_folder)
        self._overwrite, self._resume = overwrite, None if resume is None else str(resume)
        self._found = find_beginning(self.job, self.store, self._resume)
        self.notes: list[str] = [*self._found.notes]
        if self._found.manifest is not None:
            self.bad.add([BadSample(**bad) for bad in self._found.manifest.bad_samples or ()])
        self._address = address
        self._ray: RayConnection | None = None
        self._finished = False
        self.records: list[StepRecord] = []
        self.evaluations: list[Evaluation] = []
        self.restarts = 0

    @classmethod
    def of_run(
        cls, run: str | Path, overrides: Sequence[str] = (), address: str | None = None
    ) -> Self:
        """Return a trainer of a finished run's job that starts from the run's weights.

        Args:
            run: output folder of the run, or its checkpoint folder.
            overrides: ``a.b.c=value`` each, to the run's job: another layout, for one.
            address: as for any trainer.

        Raises:
            CheckpointError: the run has no sound checkpoint.
        """
        with CheckpointReader(run) as checkpoint:
            job = checkpoint.job | {"start_from": str(run)}
        return cls(job, overrides, address)

    @property
    def output(self) -> Path:
        """Folder of the run."""
        return Path(self.job.output)

    @property
    def step_stats(self) -> "DataFrame":
        """A row per step so far, as a pandas frame; its columns are those of ``step_frame``."""
        return step_frame(self.records)

    def plan(self, gpus: int | str | None = None, gpu_kind: str = "H100") -> Answer:
        """Return the best groups, layouts and schedule for the job, with what was expected of them.

        Args:
            gpus: how many, or how many of which kinds (``H100=48,L40S=16``); where not given, as
                many ranks as the job asks for, by what ``disagg-train profile`` measured of them.
            gpu_kind: of a plain number of GPUs.

        Raises:
            ConfigError: nothing is known of the GPU.
            PlanError: nothing fits.
        """
        if gpus is None:
            return plan_in_place(self.job)
        return plan_job(self.job, pools_named(str(gpus), gpu_kind), by_size(gpu_kind))

    def run(
        self,
        pool: ActorPool | None = None,
        console: Console | None = None,
        verbose: bool = False,
    ) -> None:
        """Train to the end, with live progress in the terminal or the notebook's cell.

        It is ``fit`` in one call; interrupting the cell is a first Ctrl-C.

        Args:
            pool: warm actors to use; actors of its own are made and ended where none is given.
            console: to draw on; the usual one where not given.
            verbose: whether every event is told as it happens, as ``run.log`` has them.
        """
        with contextlib.ExitStack() as opened:
            num_steps = self.job.train.steps
            progress = opened.enter_context(progress_on(console or Console(), num_steps))
            if verbose:
                opened.enter_context(attached(Told(progress.say, masked)))
            progress.say(f"starting {self.job.num_ranks} ranks; they need a moment to get ready")
            try:
                with contextlib.closing(self.fit(pool)) as steps:
                    for record in steps:
                        progress.say(*self.take_notes())
                        progress.update(record, self.evaluations)
            finally:
                progress.say(*self.take_notes())

    def fit(self, pool: ActorPool | None = None) -> Steps:
        """Train step by step: iterate to go on, over a record after every step.

        Writes the job (``job.yaml``), ``metrics.jsonl``, ``evaluations.jsonl``,
        ``bad_samples.jsonl`` and ``failures.jsonl`` if there are any, ``run.log``, the ranks'
        output (``logs/``), ``trace.json``, pictures and checkpoints into the job's output folder.
        Leaving the loop early ends the actors. After a failure the steps since the restored one
        are run, and yielded, once more.

        The first Ctrl-C or SIGTERM ends the running step and saves; the second ends at once.
        While it trains, other processes can ``disagg_train.attach`` to it by the job's name.

        Args:
            pool: warm actors to use; actors of its own are made and ended where none is given.

        Raises:
            ClusterError: the cluster cannot hold the job.
            ConfigError: the output folder holds checkpoints of an earlier run, or a sink cannot
                work here.
            RankError: a rank failed and the run may not, or cannot, go on.
            RunStopped: somebody who is attached asked the run to stop.
        """
        return Steps(self._fit(pool))

    def _fit(self, pool: ActorPool | None) -> Generator[StepRecord]:
        check_sinks(self.job.sinks)
        self._prepare_output()
        if pool is not None:
            yield from self._run(partial(pool.session, **self._kept))
            return
        self._connect(self.job.num_ranks)
        try:
            yield from self._run(partial(on_cluster, **self._kept))
        finally:
            self.close()

    @property
    def _kept(self) -> dict[str, Any]:
        """What a session keeps of its ranks: copies of their states, and their output."""
        logs = self.output.absolute() / "logs"
        return {"keeps_copies": self.job.recovery.restart == "group", "logs": logs}

    def _prepare_output(self) -> None:
        """Begin a folder, or the next part of a resumed run.

        Raises:
            ConfigError: a new run would mix its checkpoints with those of an earlier one.
        """
        if self._resume != "auto":
            make_way(self.store, self.job, self._found.step, self._overwrite)
        self.output.mkdir(parents=True, exist_ok=True)
        save_job(self.job, self.output / "job.yaml")

    def _run(self, open_session: OpenSession) -> Iterator[StepRecord]:
        facts = RunFacts(self.job.name, self.job.train.steps, str(self.output.absolute()))
        with run_log(self.output, masked), announcing(facts, self.notes) as announcer:
            run = TrainingRun(
                self.job,
                self._train_sizes,
                self.bad,
                self.store,
                self._found.manifest,
                self._found.folder,
                open_session,
                self._evaluate,
            )
            self.records, self.evaluations = run.files.records, run.files.evaluations
            announcer.tell(self.records, self.notes)
            try:
                with run, listed_in(self.output / "bad_samples.jsonl", self.bad):
                    save_job(run.job, self.output / "job.yaml")  # as it was made to fit
                    for record in run.steps():
                        if announcer.tell([record], self._take_over(run)):
                            run.ask_to_stop()
                        yield record
            finally:
                announcer.tell((), self._take_over(run))
        self.notes += draw_run(self.output, self.records, self.evaluations, self.source)
        self._finished = True

    def _take_over(self, run: TrainingRun) -> list[str]:
        """Show what the run knows by now; return what is new for people."""
        self.job, self.restarts = run.job, run.restarts
        notes = run.take_notes()
        self.notes += notes
        return notes

    def take_notes(self) -> list[str]:
        """Return what people should know, and has not been returned before."""
        notes, self.notes = self.notes, []
        return notes

    def resize(self, group: str, ranks: int) -> None:
        """Have the running ``fit`` give a group more or fewer ranks before its next step.

        The group's data parallelism follows; the global batch, and so the training, stays.

        Raises:
            ConfigError: the group cannot have so many.
        """
        resized(self.job, group, ranks)
        Requests(self.output).ask(ResizeRequest(group, ranks))

    def _evaluate(self, session: Session, step: int) -> Evaluation:
        sizes, bad = usable_sizes(self.source, session.job, "evaluation")
        self.bad.add(bad)
        good = [size for size in sizes if size.key not in self.bad]
        plan = loop.next_plan(EvaluationPlans(session.job, good), committer_of(session, self.bad))
        reports = loop.evaluate(session.groups, plan, session.job.deadlines.step_s)
        return fold_evaluation(self.source, plan, reports, step)

    def evaluate(self, pool: ActorPool | None = None) -> Evaluation:
        """Score held-out samples and decode their answers.

        The weights are those of this trainer's run where ``fit`` came to its end, else what the
        job starts from. Nothing is written.

        Args:
            pool: warm actors to use; actors of its own are made and ended where none is given.

        Raises:
            ConfigError: ``train.evaluation.samples`` is 0.
        """
        job, step = self.job, self._start_step
        if not job.train.evaluation.samples:
            raise ConfigError("train.evaluation.samples=0, so there is nothing to evaluate on")
        if self._finished:
            step = self.store.steps()[-1]
            job = job.model_copy(update={"start_from": self.store.address(step)})
        if pool is not None:
            with pool.session(job) as session:
                return self._evaluate(session, step)
        self._connect(job.num_ranks)
        try:
            with on_cluster(job) as session:
                return self._evaluate(session, step)
        finally:
            self.close()

    def verify(self, steps: int, pool: ActorPool | None = None) -> Parity:
        """Train the job's layouts and one process from the same seed and data, and compare.

        Args:
            steps: training steps of both.
            pool: warm actors to use; one is made and closed where none is given.

        Raises:
            ConfigError: the job's arithmetic rounds more than the comparison allows.
        """
        check_verifiable(self.job)
        if pool is None:
            self._connect(self.job.num_ranks)
            pool = ActorPool(self.job.num_ranks, self.job.environment)
            try:
                return self.verify(steps, pool)
            finally:
                pool.close()
                self.close()
        return verify(self.job, self._train_sizes, self.bad, steps, pool)

    def report(self, path: str | Path | None = None) -> Page:
        """Write the run's report, one page of HTML; a notebook's cell shows it.

        Args:
            path: of the page; ``report.html`` in the run's folder where not given.
        """
        return report_of(self.output, path)

    def _connect(self, num_ranks: int) -> None:
        """Connect to Ray; a Ray that is half started would be nobody's to stop."""
        if self._ray is None:
            with deferred_signals():
                self._ray = RayConnection(self._address, num_ranks)

    def close(self) -> None:
        """Stop the Ray that this trainer started, if any."""
        with deferred_signals():
            if self._ray is not None:
                self._ray.close()
                self._ray = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
