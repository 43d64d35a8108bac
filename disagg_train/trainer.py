"""The Python API: ``for step in Trainer("job.yaml").fit(): ...``, in scripts and notebooks."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from actors.cluster import RayConnection
from actors.group import results
from actors.pool import ActorPool
from actors.session import Session, on_cluster
from disagg_train.checkpoint.save import CheckpointReader, write_manifest
from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.data.index import usable_sizes
from disagg_train.data.source import DataSource, open_source
from disagg_train.driver import loop
from disagg_train.driver.commitment import BadSamples, Committer
from disagg_train.driver.evaluation import fold_evaluation
from disagg_train.driver.parity import Observation, Parity, compare, one_process
from disagg_train.driver.plans import (
    EvaluationPlans,
    RecordedPlans,
    TrainingPlans,
    training_batches,
    training_plans,
)
from disagg_train.errors import ConfigError
from disagg_train.metrics.pictures import Reading, draw_curve, draw_readings
from disagg_train.metrics.records import Evaluation, RankReport, StepRecord
from disagg_train.metrics.sinks import JsonLines
from disagg_train.metrics.trace import write_trace
from disagg_train.planner.step_plan import SampleSize
from disagg_train.schedule.file import save_schedule
from disagg_train.schedule.ops import OpKind

_READINGS = 10


class Trainer:
    """Trains a job on Ray actor groups, and closes what it opened.

    Args:
        job: path of a job file, its parsed content, or a validated job.
        overrides: ``a.b.c=value`` each.
        address: of a running Ray cluster (``auto`` for this machine's); None starts a local one.

    Raises:
        ConfigError: the job breaks a rule.
        DataError: the data set cannot be used.
    """

    def __init__(
        self,
        job: str | Path | Mapping[str, Any] | JobConfig,
        overrides: Sequence[str] = (),
        address: str | None = None,
    ) -> None:
        self.job = load_job(job, overrides)
        self._start_step = 0
        if self.job.start_from is not None:
            self._start(self.job.start_from)
        self.source: DataSource = open_source(self.job)
        self._train_sizes, bad = usable_sizes(self.source, self.job, "train")
        in_index = getattr(self.source, "bad_samples", ())
        self.bad = BadSamples(self.job.data.max_bad_samples, [*in_index, *bad])
        self._address = address
        self._ray: RayConnection | None = None
        self.note = ""
        self._finished = False
        self.records: list[StepRecord] = []
        self.evaluations: list[Evaluation] = []

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
        with CheckpointReader(Path(run)) as checkpoint:
            job = checkpoint.job | {"start_from": str(run)}
        return cls(job, overrides, address)

    @property
    def output(self) -> Path:
        """Folder of the run."""
        return Path(self.job.output)

    def fit(self, pool: ActorPool | None = None) -> Iterator[StepRecord]:
        """Train; yield a record after every step.

        Writes ``metrics.jsonl``, ``evaluations.jsonl``, ``bad_samples.jsonl`` if there are any,
        ``trace.json``, pictures and a final checkpoint into the job's output folder. Leaving the
        loop early ends the actors.

        Args:
            pool: warm actors to use; actors of its own are made and ended where none is given.

        Raises:
            ClusterError: the cluster cannot hold the job.
            RankError: a rank died, hung or raised.
        """
        if pool is not None:
            with pool.session(self.job) as session:
                yield from self._run(session)
            return
        self._connect(self.job.num_ranks)
        try:
            with on_cluster(self.job) as session:
                self.job, self.note = session.job, session.note
                yield from self._run(session)
        finally:
            self.close()

    def _run(self, session: Session) -> Iterator[StepRecord]:
        job = session.job
        plans = training_plans(job, training_batches(job, self._train_sizes))
        traced: list[Sequence[RankReport]] = []
        with (
            JsonLines(self.output / "metrics.jsonl") as metrics,
            JsonLines(self.output / "evaluations.jsonl") as evaluations,
            self._listing_bad_samples(),
        ):
            save_schedule(session.schedule, self.output / "schedule.yaml")
            steps = loop.train(
                session.groups,
                plans,
                job.deadlines.step_s,
                self._evaluates_after,
                self._committer(session),
            )
            for record, reports in steps:
                self.records.append(record)
                metrics.write(record.as_dict())
                if job.train.is_traced(record.step):
                    traced.append(reports)
                if self._evaluates_after(record.step):
                    self.evaluations.append(self._evaluate(session, record.step + 1))
                    evaluations.write(self.evaluations[-1].as_dict())
                yield record
        write_trace(self.output / "trace.json", traced, session.row_names)
        self._draw()
        self._save(session)

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

    def _evaluates_after(self, step: int) -> bool:
        evaluation, done = self.job.train.evaluation, step + 1
        if not evaluation.samples:
            return False
        last = done == self.job.train.steps
        return last or bool(evaluation.every_steps and done % evaluation.every_steps == 0)

    def _evaluate(self, session: Session, step: int) -> Evaluation:
        sizes, bad = usable_sizes(self.source, session.job, "evaluation")
        self.bad.add(bad)
        good = [size for size in sizes if size.key not in self.bad]
        plan = loop.next_plan(EvaluationPlans(session.job, good), self._committer(session))
        reports = loop.evaluate(session.groups, plan, session.job.deadlines.step_s)
        return fold_evaluation(self.source, plan, reports, step)

    def _committer(self, session: Session) -> Committer | None:
        """Return what takes bad samples out, if that is the job's policy."""
        job = session.job
        if job.data.on_bad_sample == "fail":
            return None
        kinds = {op.kind for ops in session.schedule.ops for op in ops}
        runs_ahead = OpKind.RUN_AHEAD in kinds
        return Committer(session.groups, self.bad, job.deadlines.step_s, runs_ahead)

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
            folder = str(self.output.absolute())
            job, step = job.model_copy(update={"start_from": folder}), len(self.records)
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

    def _save(self, session: Session) -> None:
        folder = self.output / "checkpoint"
        files: dict[str, str] = {}
        for group in session.groups:
            deadline_s = session.job.deadlines.step_s
            for sums in results(group.save(folder.absolute()), deadline_s, group.name, "saving"):
                files.update(sums)
        write_manifest(folder, session.job.model_dump(mode="json"), len(self.records), files)
        self._finished = True

    def _draw(self) -> None:
        try:
            draw_curve(self.output / "curve.png", self.records, self.evaluations)
            if readings := self._readings():
                draw_readings(self.output / "predictions.png", readings)
        except ImportError:
            self.note += " No pictures were drawn: pip install 'disagg_train[demo]'."

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
            pool = ActorPool(self.job.num_ranks)
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
            committer, deadline_s = self._committer(session), job.deadlines.step_s
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
