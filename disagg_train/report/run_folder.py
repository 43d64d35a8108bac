"""What a run left in its folder, as far as it is there: finished, running and failed runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from disagg_train.checkpoint.manifest import CheckpointStore
from disagg_train.config.job import JobConfig
from disagg_train.config.load import read_content, refusal
from disagg_train.errors import ConfigError, DataError, PlanError
from disagg_train.metrics.records import Evaluation, RankReport, StepRecord
from disagg_train.metrics.sinks import read_json_lines
from disagg_train.metrics.trace import Trace, load_trace
from disagg_train.planner.step_plan import StepPlan
from disagg_train.schedule.file import load_schedule
from disagg_train.schedule.ops import Schedule

Records = list[dict[str, Any]]


@dataclass(frozen=True)
class TracedStep:
    """A step that was recorded.

    Args:
        number: of the step.
        reports: what every rank did.
        plan: who computed which sample; None where the run did not write it.
    """

    number: int
    reports: Sequence[RankReport]
    plan: StepPlan | None


@dataclass(frozen=True)
class RunFolder:
    """A run.

    Args:
        path: of the folder.
        job: its job.
        records: of the steps that are done.
        evaluations: on held-out samples.
        steps: that were recorded.
        rows: names of the global ranks, as ``group/rank``.
        schedule: op lists of the ranks; None where there is no such file.
        failures: as in ``failures.jsonl``.
        failure_texts: per failure, its report for people.
        bad_samples: samples that were taken out.
        checkpoints: steps of the complete checkpoints; None where they lie elsewhere.
        missing: per file, what it would have told.
    """

    path: Path
    job: JobConfig
    records: Sequence[StepRecord]
    evaluations: Sequence[Evaluation]
    steps: Sequence[TracedStep]
    rows: Mapping[int, str]
    schedule: Schedule | None
    failures: Records
    failure_texts: Sequence[str]
    bad_samples: Records
    checkpoints: Sequence[int] | None
    missing: Mapping[str, str]


def read_folder(folder: Path) -> RunFolder:
    """Return the run of a folder.

    Raises:
        ConfigError: it is no run's folder, or its job is of another version.
        DataError: a file in it is damaged, or of another version.
    """
    job, missing = _job(folder), dict[str, str]()
    trace, schedule = _trace(folder, missing), _schedule(folder, missing)
    plans = {plan.step: plan for plan in _records(folder, "plans.jsonl", StepPlan.from_dict)}
    steps = [
        TracedStep(number, reports, _fitting(job, plans.get(number)))
        for number, reports in zip(trace.numbers, trace.steps, strict=True)
    ]
    if any(step.plan is None for step in steps):
        missing["plans.jsonl"] = (
            "the samples of each microbatch of the traced steps; without it, work per "
            "microbatch is not known, and arrows begin at the last sender"
        )
    return RunFolder(
        path=folder,
        job=job,
        records=_records(folder, "metrics.jsonl", StepRecord.from_dict),
        evaluations=_records(folder, "evaluations.jsonl", Evaluation.from_dict),
        steps=steps,
        rows={place: "/".join(name.rsplit(" ", 1)) for place, name in trace.rows.items()},
        schedule=schedule,
        failures=read_json_lines(folder / "failures.jsonl"),
        failure_texts=[
            path.read_text(errors="replace") for path in sorted(folder.glob("failures/*.txt"))
        ],
        bad_samples=read_json_lines(folder / "bad_samples.jsonl"),
        checkpoints=_checkpoints(folder, job),
        missing=missing,
    )


def _job(folder: Path) -> JobConfig:
    """Return the job as it was written: nothing that it names is opened."""
    path = folder / "job.yaml"
    if not path.exists():
        raise ConfigError(f"{folder} has no job.yaml; name the output folder of a run")
    try:
        return JobConfig.model_validate(read_content(path))
    except ValidationError as error:
        raise refusal(error.errors()) from None


def _trace(folder: Path, missing: dict[str, str]) -> Trace:
    try:
        return load_trace(folder / "trace.json")
    except DataError as error:
        missing["trace.json"] = (
            "what ranks did in each step. It is written once the traced steps "
            f"(train.trace_steps) are done ({error})"
        )
        return Trace((), (), {})


def _schedule(folder: Path, missing: dict[str, str]) -> Schedule | None:
    try:
        return load_schedule(folder / "schedule.yaml")
    except (OSError, PlanError) as error:
        missing["schedule.yaml"] = f"the op lists of the ranks, which a simulation needs ({error})"
        return None


def _records[T](folder: Path, name: str, read: Callable[[Mapping[str, Any]], T]) -> list[T]:
    try:
        return [read(record) for record in read_json_lines(folder / name)]
    except (KeyError, TypeError, AttributeError, PlanError) as error:
        raise DataError(
            f"{folder / name} is damaged or of another version ({error!r}); read it with the "
            f"release that wrote it"
        ) from error


def _fitting(job: JobConfig, plan: StepPlan | None) -> StepPlan | None:
    """Return a plan, unless it is of another layout, as after a change of ranks."""
    if plan is None or set(plan.assignment) != set(job.modules):
        return None
    dp = {name: module.parallel.dp for name, module in job.modules.items()}
    return plan if all(plan.dp(name) == dp[name] for name in dp) else None


def _checkpoints(folder: Path, job: JobConfig) -> Sequence[int] | None:
    """Return the steps of checkpoints on this machine; others are not asked for."""
    named = job.checkpoint.folder
    if named is None:
        return CheckpointStore(str((folder / "checkpoints").absolute())).steps()
    return CheckpointStore(named).steps() if Path(named).is_dir() else None
