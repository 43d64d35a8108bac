"""``disagg-train plan`` and ``train --plan auto``: what they print, write and refuse."""

import json
from pathlib import Path
from typing import Any

import pytest

from disagg_train.cli import main
from disagg_train.config.load import load_job
from disagg_train.driver.cost_sources import by_size, pools_named
from disagg_train.driver.planning import plan_job
from disagg_train.errors import ConfigError

_JOB = str(Path(__file__).parents[2] / "examples" / "digits.yaml")
_PLAN = ["plan", _JOB, "--samples", "512"]


def test_the_file_that_a_plan_writes_is_a_job_for_all_gpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "planned.yaml"
    assert main([*_PLAN, "--gpus", "6", "--json", "--write", str(file)]) == 0
    answer, job = json.loads(capsys.readouterr().out), load_job(file)
    assert job.num_ranks == 6
    assert {name: group.ranks for name, group in job.groups.items()} == {
        name: group["ranks"] for name, group in answer["best"]["groups"].items()
    }
    assert job.plan is not None
    assert set(job.plan.busy_s) == set(job.modules)
    assert job.train.global_batch == load_job(_JOB).train.global_batch


def test_people_read_the_layouts_side_by_side_and_how_sure_the_choice_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*_PLAN, "--gpus", "2"]) == 0
    printed = capsys.readouterr().out
    for words in (
        "best",
        "runner-up",
        "lost: a step takes",
        "encoders : LLM =",
        "b_min",
        "on H100",
    ):
        assert words in printed


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        ("many", "'many' is no number of GPUs"),
        ("0", "'0' is no number of GPUs"),
        ("H100=4,", "'' is no number of GPUs"),
        ("GTX=4", "GTX"),
    ],
)
def test_gpus_that_cannot_be_are_refused(
    gpus: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*_PLAN, "--gpus", gpus]) == 1
    assert message in capsys.readouterr().err


def test_train_takes_the_plan_for_as_many_ranks_as_the_job_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs: list[Any] = []

    def trainer(job: Any, *_: object, **__: object) -> None:
        jobs.append(load_job(job))
        raise ConfigError("no rank is started here")

    monkeypatch.setattr("disagg_train.trainer.Trainer", trainer)
    assert main(["train", _JOB, "--plan", "auto", "--set", "train.global_batch=32"]) == 1
    (job,) = jobs
    assert job.plan is not None
    assert (job.num_ranks, job.train.global_batch) == (load_job(_JOB).num_ranks, 32)


def test_a_notebooks_cell_shows_the_layouts() -> None:
    job = load_job(_JOB)
    answer = plan_job(job, pools_named("2", "H100"), by_size("H100"), num_samples=512)
    shown = answer._repr_mimebundle_((), ())
    assert "runner-up" in shown["text/plain"]
    assert "<pre" in shown["text/html"]
