"""The Python API: ``for step in Trainer("job.yaml").fit(): ...``, in scripts and notebooks."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from actors.cluster import RayConnection
from actors.group import results
from actors.pool import ActorPool
from actors.session import Session, on_cluster
from disagg_train.checkpoint.save import write_manifest
from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.data.index import checked_sizes
from disagg_train.data.sampler import batches
from disagg_train.data.source import DataSource, open_source
from disagg_train.driver import loop
from disagg_train.driver.evaluation import fold_evaluation
from disagg_train.driver.parity import Observation, Parity, compare, one_process
from disagg_train.driver.plans import evaluation_plan, training_plans
from disagg_train.metrics.pictures import Reading, draw_curve, draw_readings
from disagg_train.metrics.records import Evaluation, RankReport, StepRecord
from disagg_train.metrics.sinks import JsonLines
from disagg_train.metrics.trace import write_trace
from disagg_train.planner.step_plan import StepPlan
from disagg_train.schedule.file import save_schedule

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
        self.source: DataSource = open_source(self.job)
        self._train_sizes = checked_sizes(self.source, self.job, "train")
        self._address = address
        self._ray: RayConnection | None = None
        self.note = ""
        self.records: list[StepRecord] = []
        self.evaluations: list[Evaluation] = []

    @property
    def output(self) -> Path:
        """Folder of the run."""
        return Path(self.job.output)

    def fit(self) -> Iterator[StepRecord]:
        """Train; yield a record after every step.

        Writes ``metrics.jsonl``, ``evaluations.jsonl``, ``trace.json``, pictures and a final
        checkpoint into the job's output folder. Leaving the loop early ends the actors.

        Raises:
            ClusterError: the cluster cannot hold the job.
            RankError: a rank died, hung or raised.
        """
        self._connect(self.job.num_ranks)
        try:
            with on_cluster(self.job) as session:
                self.job, self.note = session.job, session.note
                yield from self._run(session)
        finally:
            self.close()

    def _run(self, session: Session) -> Iterator[StepRecord]:
        job = session.job
        plans = training_plans(job, self._batches(job))
        traced: list[Sequence[RankReport]] = []
        with (
            JsonLines(self.output / "metrics.jsonl") as metrics,
            JsonLines(self.output / "evaluations.jsonl") as evaluations,
        ):
            save_schedule(session.schedule, self.output / "schedule.yaml")
            steps = loop.train(session.groups, plans, job.deadlines.step_s, self._evaluates_after)
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

    def _evaluates_after(self, step: int) -> bool:
        evaluation, done = self.job.train.evaluation, step + 1
        if not evaluation.samples:
            return False
        last = done == self.job.train.steps
        return last or bool(evaluation.every_steps and done % evaluation.every_steps == 0)

    def _evaluate(self, session: Session, step: int) -> Evaluation:
        plan = self._evaluation_plan(session.job)
        reports = loop.evaluate(session.groups, plan, session.job.deadlines.step_s)
        return fold_evaluation(self.source, plan, reports, step)

    def _evaluation_plan(self, job: JobConfig) -> StepPlan:
        return evaluation_plan(job, checked_sizes(self.source, job, "evaluation"))

    def _batches(self, job: JobConfig) -> Iterator[Any]:
        return batches(self._train_sizes, job.seed, job.train.global_batch)

    def _save(self, session: Session) -> None:
        folder = self.output / "checkpoint"
        files: dict[str, str] = {}
        for group in session.groups:
            deadline_s = session.job.deadlines.step_s
            for sums in results(group.save(folder.absolute()), deadline_s, group.name, "saving"):
                files.update(sums)
        write_manifest(folder, session.job.model_dump(mode="json"), len(self.records), files)

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
            images = [i for found in self.source.load(answer.key).images.values() for i in found]
            if images:
                seen.append(Reading(images[0], answer.predicted, answer.true))
        return seen[:_READINGS]

    def verify(self, steps: int, pool: ActorPool | None = None) -> Parity:
        """Train the job's layouts and one process from the same seed and data, and compare.

        Args:
            steps: training steps of both.
            pool: warm actors to use; one is made and closed where none is given.
        """
        if pool is None:
            self._connect(self.job.num_ranks)
            pool = ActorPool(self.job.num_ranks)
            try:
                return self.verify(steps, pool)
            finally:
                pool.close()
                self.close()
        found = self._observe(self.job, steps, pool)
        return compare(found, self._observe(one_process(self.job), steps, pool))

    def _observe(self, job: JobConfig, steps: int, pool: ActorPool) -> Observation:
        records: list[StepRecord] = []
        first_gradients: dict[str, Any] = {}
        with pool.session(job) as session:
            plans = list(itertools.islice(training_plans(job, self._batches(job)), steps))
            for part in (plans[:1], plans[1:]):
                done = loop.train(session.groups, part, job.deadlines.step_s)
                records += [record for record, _ in done]
                first_gradients = first_gradients or _collect(session, "gradients")
            weights = _collect(session, "weights")
        losses = [record.loss for record in records]
        return Observation(losses, [r.grad_norm for r in records], first_gradients, weights)

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
