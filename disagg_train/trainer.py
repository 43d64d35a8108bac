"""The Python API: ``for step in Trainer("job.yaml").fit(): ...``, in scripts and notebooks."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Self

from actors.cluster import RayConnection
from actors.group import results
from actors.pool import ActorPool
from actors.session import Session, on_cluster
from disagg_train.checkpoint.manifest import CheckpointStore, Manifest, read_manifest
from disagg_train.checkpoint.reader import CheckpointReader
from disagg_train.checkpoint.same_run import check_same_run
from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job, save_job
from disagg_train.config.resize import resized
from disagg_train.config.secret_values import redacted
from disagg_train.data.index import usable_sizes
from disagg_train.data.source import DataSource, open_source
from disagg_train.driver import loop
from disagg_train.driver.commitment import BadSamples
from disagg_train.driver.evaluation import fold_evaluation
from disagg_train.driver.parity import Observation, Parity, compare, one_process
from disagg_train.driver.plans import (
    EvaluationPlans,
    RecordedPlans,
    TrainingPlans,
    training_batches,
)
from disagg_train.driver.requests import Requests, ResizeRequest
from disagg_train.errors import ConfigError
from disagg_train.metrics.events import run_log
from disagg_train.metrics.pictures import Reading, draw_curve, draw_readings
from disagg_train.metrics.records import BadSample, Evaluation, StepRecord
from disagg_train.metrics.sinks import JsonLines
from disagg_train.planner.step_plan import SampleSize
from disagg_train.training import OpenSession, TrainingRun, committer_of

_READINGS = 10


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
        self.job = load_job(job, overrides)
        self._start_step = 0
        if self.job.start_from is not None:
            self._start(self.job.start_from)
        self.source: DataSource = open_source(self.job)
        self._train_sizes, bad = usable_sizes(self.source, self.job, "train")
        in_index = getattr(self.source, "bad_samples", ())
        self.bad = BadSamples(self.job.data.max_bad_samples, [*in_index, *bad])
        self.notes: list[str] = []
        self.store = CheckpointStore(self.job.checkpoint_folder)
        self._overwrite, self._resume = overwrite, None if resume is None else str(resume)
        self._found, self._found_in = (None, "") if resume is None else self._find(str(resume))
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

    def fit(self, pool: ActorPool | None = None) -> Iterator[StepRecord]:
        """Train; yield a record after every step.

        Writes the job (``job.yaml``), ``metrics.jsonl``, ``evaluations.jsonl``,
        ``bad_samples.jsonl`` and ``failures.jsonl`` if there are any, ``run.log``, the ranks'
        output (``logs/``), ``trace.json``, pictures and checkpoints into the job's output folder.
        Leaving the loop early ends the actors. After a failure the steps since the restored one
        are run, and yielded, once more.

        The first Ctrl-C or SIGTERM ends the running step and saves; the second ends at once.

        Args:
            pool: warm actors to use; actors of its own are made and ended where none is given.

        Raises:
            ClusterError: the cluster cannot hold the job.
            ConfigError: the output folder holds checkpoints of an earlier run.
            RankError: a rank failed and the run may not, or cannot, go on.
        """
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
        begin = 0 if self._found is None else self._found.step
        later = [step for step in self.store.steps() if step > begin]
        if later and self._resume != "auto":
            if not self._overwrite:
                raise ConfigError(
                    f"{self.job.checkpoint_folder} holds checkpoints of an earlier run, up to step "
                    f"{later[-1]}; go on with it (--resume auto), remove them (--overwrite), or "
                    f"set another `output`"
                )
            self.store.clear(after=begin)
        self.output.mkdir(parents=True, exist_ok=True)
        save_job(self.job, self.output / "job.yaml")

    def _run(self, open_session: OpenSession) -> Iterator[StepRecord]:
        with run_log(self.output, redacted):
            yield from self._run_logged(open_session)

    def _run_logged(self, open_session: OpenSession) -> Iterator[StepRecord]:
        run = TrainingRun(
            self.job,
            self._train_sizes,
            self.bad,
            self.store,
            self._found,
            self._found_in,
            open_session,
            self._evaluate,
        )
        self.records, self.evaluations = run.files.records, run.files.evaluations
        with run, self._listing_bad_samples():
            try:
                for record in run.steps():
                    self._take_over(run)
                    yield record
            finally:
                self._take_over(run)
        self._draw()
        self._finished = True

    def _take_over(self, run: TrainingRun) -> None:
        """Show what the run knows by now."""
        self.job, self.restarts = run.job, run.restarts
        self.notes += run.take_notes()

    @contextlib.contextmanager
    def _listing_bad_samples(self) -> Iterator[None]:
        """Write what was taken out at the end, also where too many of them are the end."""
        try:
            yield
        finally:
            if self.bad.count:
                with JsonLines(self.output / "bad_samples.jsonl") as listed:
                    for bad in self.bad:
                        listed.write(asdict(bad))

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

    def _start(self, run: str) -> None:
        """Refuse an earlier run without a sound checkpoint, before any actor starts."""
        folder = Path(run).expanduser().absolute()
        with CheckpointReader(folder) as checkpoint:
            checkpoint.verify()
            self._start_step = checkpoint.step
        self.job = self.job.model_copy(update={"start_from": str(folder)})

    def _find(self, resume: str) -> tuple[Manifest | None, str]:
        """Return the checkpoint to go on from, and where it lies.

        Raises:
            CheckpointError: the one that was named is damaged.
            ConfigError: it is of another run.
        """
        if resume == "auto":
            found, notes = self.store.newest_sound()
            self.notes += notes
            folder = "" if found is None else self.store.address(found.step)
        else:
            with CheckpointReader(resume) as checkpoint:
                checkpoint.verify()
                folder = checkpoint.folder
            found = read_manifest(folder)
        if found is not None:
            check_same_run(found.job, self.job)
            self.bad.add([BadSample(**bad) for bad in found.bad_samples or ()])
        return found, folder

    def _draw(self) -> None:
        try:
            draw_curve(self.output / "curve.png", self.records, self.evaluations)
            if readings := self._readings():
                draw_readings(self.output / "predictions.png", readings)
        except ImportError:
            self.notes.append("no pictures were drawn: pip install 'disagg_train[demo]'")

    def _readings(self) -> list[Reading]:
        if not self.evaluations:
            return []
        seen = []
        for answer in self.evaluations[-1].answers:
            inputs = self.source.load(answer.key).inputs.values()
            images = [image for found in inputs for image in found if image.ndim == 3]
            if images:
                seen.append(Reading(images[0], answer.predicted, answer.true))
        return seen[:_READINGS]

    def verify(self, steps: int, pool: ActorPool | None = None) -> Parity:
        """Train the job's layouts and one process from the same seed and data, and compare.

        Args:
            steps: training steps of both.
            pool: warm actors to use; one is made and closed where none is given.

        Raises:
            ConfigError: the job's arithmetic rounds more than the comparison allows.
        """
        if (precision := self.job.train.precision) != "fp32":
            raise ConfigError(
                f"train.precision={precision} rounds differently on every layout; "
                f"verify with --set train.precision=fp32"
            )
        if pool is None:
            self._connect(self.job.num_ranks)
            pool = ActorPool(self.job.num_ranks, self.job.environment)
            try:
                return self.verify(steps, pool)
            finally:
                pool.close()
                self.close()
        batches = training_batches(self.job, self._train_sizes)
        found, trained_on = self._observe(self.job, TrainingPlans(self.job, batches, steps), pool)
        alone = one_process(self.job)
        same = TrainingPlans(alone, iter(trained_on), steps)
        return compare(found, self._observe(alone, same, pool)[0])

    def _observe(
        self, job: JobConfig, plans: TrainingPlans, pool: ActorPool
    ) -> tuple[Observation, list[tuple[SampleSize, ...]]]:
        """Return what a run shows, and the samples of its steps."""
        records: list[StepRecord] = []
        first_gradients: dict[str, Any] = {}
        recorded = RecordedPlans(plans)
        with pool.session(job) as session:
            committer, deadline_s = committer_of(session, self.bad), job.deadlines.step_s
            steps = loop.train(
                session.groups, recorded, deadline_s, lambda step: step == 0, committer
            )
            for record, _ in steps:
                records.append(record)
                first_gradients = first_gradients or _collect(session, "gradients")
            weights = _collect(session, "weights")
        losses, norms = [r.loss for r in records], [r.grad_norm for r in records]
        return Observation(losses, norms, first_gradients, weights), recorded.batches

    def _connect(self, num_ranks: int) -> None:
        if self._ray is None:
            self._ray = RayConnection(self._address, num_ranks)

    def close(self) -> None:
        """Stop the Ray that this trainer started, if any."""
        if self._ray is not None:
            self._ray.close()
            self._ray = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _collect(session: Session, what: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for group in session.groups:
        future = group.weights() if what == "weights" else group.gradients()
        for part in results(future, session.job.deadlines.step_s, group.name, what):
            found.update(part)
    return found
