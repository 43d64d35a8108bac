"""A run is read from its folder: its steps, its report."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

import disagg_train
from disagg_train.errors import ConfigError
from disagg_train.metrics.records import ModuleTimes, StepRecord
from disagg_train.metrics.run_files import RunFiles
from disagg_train.run_view import Steps


def _record(step: int) -> StepRecord:
    times = {"language": ModuleTimes(0.1, 0.2, 0.0, 0)}
    return StepRecord(step, 1.0, 1.0, 0.1, 3, 5, 0.5, False, 0, 0, times)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with RunFiles(tmp_path) as files:
        for step in range(3):
            files.add_step(_record(step), [])
    return tmp_path


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, Path | None]]:
    """Stand in for what writes reports; what it was asked for."""
    asked: list[tuple[Path, Path | None]] = []

    def write_report(folder: Path, path: Path | None = None) -> Path:
        asked.append((folder, path))
        page = path or folder / "report.html"
        page.write_text("<h1>a run</h1>")
        return page

    module = ModuleType("disagg_train.report.page")
    module.write_report = write_report  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "disagg_train.report", ModuleType("disagg_train.report"))
    monkeypatch.setitem(sys.modules, "disagg_train.report.page", module)
    return asked


def test_a_run_has_the_steps_of_its_folder(folder: Path) -> None:
    run = disagg_train.read_run(folder)
    assert [record.step for record in run.records] == [0, 1, 2]
    assert list(run.step_stats["language.backward_s"]) == [0.2] * 3


def test_the_report_is_written_into_the_runs_folder_or_where_it_is_wanted(
    folder: Path, written: list[tuple[Path, Path | None]]
) -> None:
    run = disagg_train.read_run(folder)
    assert "a run" in run.report()._repr_html_()
    assert run.report(folder / "other.html").path == folder / "other.html"
    assert written == [(folder, None), (folder, folder / "other.html")]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no metrics\.jsonl on this machine"):
        disagg_train.read_run(tmp_path)


def test_steps_say_that_they_want_to_be_iterated_over() -> None:
    ended = []

    def train():  # type: ignore[no-untyped-def]
        try:
            yield _record(0)
            yield _record(1)
        finally:
            ended.append(True)

    steps = Steps(train())
    assert "Trainer.run()" in repr(steps)
    assert next(steps).step == 0
    steps.close()
    assert ended == [True]
