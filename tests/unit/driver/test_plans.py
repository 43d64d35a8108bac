"""Which schedule a job gets: one that it names, or a file of its own."""

from pathlib import Path

import pytest

from disagg_train.cli import main
from disagg_train.config.load import load_job
from disagg_train.driver.schedules import job_schedules
from disagg_train.errors import ConfigError, PlanError
from disagg_train.schedule.file import save_schedule
from tests.unit.config.jobs import JOB


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    save_schedule(job_schedules(load_job(JOB))[0], path)
    return path


@pytest.mark.parametrize("name", ["1f1b", "gpipe", "zero_bubble"])
def test_a_job_gets_the_schedule_that_it_names(name: str) -> None:
    training, evaluation = job_schedules(load_job(JOB, [f"train.schedule={name}"]))
    assert (training.name, evaluation.name) == (name, "evaluation")


def test_a_job_gets_the_schedule_of_its_file(file: Path) -> None:
    job = load_job(JOB, [f"train.schedule={file}"])
    assert job_schedules(job)[0] == job_schedules(load_job(JOB))[0]


def test_check_prints_the_passes_and_writes_all_ops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tmp_path / "written.yaml"
    command = ["check", "examples/digits.yaml", "--set", "train.schedule=gpipe"]
    assert main([*command, "--write-schedule", str(written)]) == 0
    printed = capsys.readouterr().out
    assert "vision" in printed and "F0 F1 B0 B1" in printed
    assert "name: gpipe" in written.read_text()


def test_a_name_that_is_neither_builder_nor_file_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'2f2b': neither one of \['1f1b', .* nor a file"):
        job_schedules(load_job(JOB, ["train.schedule=2f2b"]))


def test_a_file_of_another_number_of_microbatches_is_refused(file: Path) -> None:
    job = load_job(JOB, [f"train.schedule={file}", "train.microbatches=4"])
    with pytest.raises(ConfigError, match=r"train.microbatches=4, but .* set .*: 2"):
        job_schedules(job)


def test_a_fault_in_a_file_is_named_with_the_file(file: Path) -> None:
    file.write_text(file.read_text().replace("  - agree\n", "", 1))
    with pytest.raises(PlanError, match=r"mine.yaml: rank 0 never runs 'agree'"):
        job_schedules(load_job(JOB, [f"train.schedule={file}"]))
