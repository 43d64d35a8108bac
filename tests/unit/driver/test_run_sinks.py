"""Which sinks a job has, what is refused before anything starts, and what every sink is given."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.driver import run_sinks
from disagg_train.driver.run_sinks import RunSinks, check_sinks
from disagg_train.errors import ConfigError
from disagg_train.metrics.measures import Measures, Standing
from disagg_train.metrics.records import Evaluation, StepRecord
from disagg_train.metrics.trackers import TrackedRun
from disagg_train.planner.step_plan import SampleSize
from tests.unit.config.jobs import JOB, refusal
from tests.unit.metrics.steps import evaluation, record, reports

_NO_FILES = "sinks.tensorboard=false"


class _Recorder:
    """Keeps all that it is given."""

    def __init__(self) -> None:
        self.steps: list[Measures] = []
        self.told: list[Any] = []

    def add_step(self, measures: Measures) -> None:
        self.steps.append(measures)

    def add_evaluation(self, evaluation: Evaluation) -> None:
        self.told.append(evaluation)

    def rewind(self, steps_done: int) -> None:
        self.told.append(steps_done)

    def close(self, ok: bool) -> None:
        self.told.append(ok)


def _sinks(*overrides: str, **more: Any) -> tuple[RunSinks, _Recorder]:
    recorder = _Recorder()
    job = load_job(JOB, [_NO_FILES, *overrides])
    return RunSinks(job, 0, more={"recorder": lambda: recorder}, **more), recorder


def _add(sinks: RunSinks, step: StepRecord) -> None:
    sinks.add_step(step, reports(), [SampleSize(0, 10, 5)], Standing(restarts=1))


def _skipped(step: int) -> StepRecord:
    return StepRecord.from_dict({**record(step).as_dict(), "skipped": True})


def test_every_sink_is_given_steps_evaluations_and_the_end() -> None:
    sinks, recorder = _sinks()
    _add(sinks, record(0))
    sinks.add_evaluation(evaluation(1))
    sinks.rewind(0)
    sinks.close(ok=True)
    assert [each.record for each in recorder.steps] == [record(0)]
    assert recorder.steps[0].standing.restarts == 1
    assert recorder.told == [evaluation(1), 0, True]


def test_skipped_steps_count_once_though_they_run_again() -> None:
    sinks, recorder = _sinks(skipped=[7])
    for step in (8, 9):
        _add(sinks, _skipped(step))
    sinks.rewind(9)
    _add(sinks, _skipped(9))
    sinks.close()
    assert [each.standing.skipped_steps for each in recorder.steps] == [2, 3, 3]


def test_mfu_follows_a_job_onto_fewer_ranks() -> None:
    kinds = {"encoders": "H100", "language": "H100"}
    sinks, recorder = _sinks(gpu_kinds=kinds)
    _add(sinks, record(0))
    fewer = ["groups={encoders: {ranks: 1}, language: {ranks: 2}}", "modules.vision.parallel.dp=1"]
    sinks.lay_out(load_job(JOB, [*fewer, "modules.language.parallel={tp: 2}"]))
    _add(sinks, record(1))
    sinks.close()
    before, after = (each.mfu for each in recorder.steps)
    assert before is not None and after is not None
    assert after == pytest.approx(2 * before)


def test_a_run_without_sinks_goes_on(tmp_path: Path) -> None:
    job = load_job(JOB, [_NO_FILES, f"output={tmp_path}"])
    sinks = RunSinks(job, 0)
    _add(sinks, record(0))
    sinks.close(ok=True)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_is_there_unless_the_job_says_otherwise(tmp_path: Path) -> None:
    sinks = RunSinks(load_job(JOB, [f"output={tmp_path}"]), 0)
    _add(sinks, record(0))
    sinks.close(ok=True)
    assert sinks.take_notes() == []
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_a_folder_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").touch()
    sinks = RunSinks(load_job(JOB, [f"output={tmp_path}"]), 0)
    _add(sinks, record(0))
    sinks.close(ok=True)
    first, second = sinks.take_notes()
    assert first.startswith("tensorboard: FileExistsError")
    assert "1 of the run's entries" in second


def test_trackers_are_not_told_a_jobs_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[TrackedRun] = []

    def open_sink(about: object, run: TrackedRun) -> _Recorder:
        told.append(run)
        return _Recorder()

    monkeypatch.setattr(run_sinks, "_mlflow", open_sink)
    overrides = ("environment={PROXY: planted-1}", "groups.language.environment={NET: planted-2}")
    sinks = RunSinks(load_job(JOB, [_NO_FILES, "sinks.mlflow={experiment: e}", *overrides]), 0)
    sinks.close(ok=True)
    (run,) = told
    assert "planted" not in str(run.content)
    assert run.content["groups"]["language"]["ranks"] == 4


def test_notes_hold_no_password() -> None:
    def refuse() -> _Recorder:
        raise ConnectionError("no answer from http://user:hunter2@tracking.example/api")

    sinks = RunSinks(load_job(JOB, [_NO_FILES]), 0, more={"recorder": refuse})
    sinks.close()
    (note,) = sinks.take_notes()
    assert "hunter2" not in note
    assert "tracking.example" in note


def _job(*overrides: str) -> JobConfig:
    return load_job(JOB, overrides)


@pytest.mark.parametrize(
    "sink", ["wandb={project: p, mode: offline}", "mlflow={experiment: e}"], ids=["wandb", "mlflow"]
)
def test_a_missing_package_is_named_with_its_installation(
    sink: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = sink.partition("=")[0]
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"pip install 'disagg_train\[{name}\]'"):
        check_sinks(_job(f"sinks.{sink}").sinks)


def _stand_in(monkeypatch: pytest.MonkeyPatch, has_key: bool) -> list[dict[str, bool]]:
    asked: list[dict[str, bool]] = []
    module = ModuleType("wandb")
    module.__spec__ = object()  # type: ignore[assignment]
    module.Error = type("Error", (Exception,), {})  # type: ignore[attr-defined]
    module.login = lambda **how: asked.append(how) or has_key  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return asked


def test_a_missing_key_is_named_and_never_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _stand_in(monkeypatch, has_key=False)
    with pytest.raises(ConfigError, match="WANDB_API_KEY"):
        check_sinks(_job("sinks.wandb={project: p}").sinks)
    assert asked == [{"prompt": False, "verify": False}]


def test_a_key_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_in(monkeypatch, has_key=True)
    check_sinks(_job("sinks.wandb={project: p}").sinks)


def test_offline_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _stand_in(monkeypatch, has_key=False)
    check_sinks(_job("sinks.wandb={project: p, mode: offline}").sinks)
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_sinks(_job("sinks.wandb={project: p}").sinks)
    assert asked == []


def test_a_key_has_no_place_in_the_job_file() -> None:
    said = refusal("sinks.wandb={project: p, api_key: 0123456789abcdef}")
    assert "sinks.wandb.api_key: unknown field" in said
    assert "0123456789abcdef" not in said
