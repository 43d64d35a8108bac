"""A whole run through the Python API leaves what it promised, and nothing else."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from disagg_train.driver.schedules import job_schedules
from disagg_train.metrics.trace import load_trace
from disagg_train.report.page import write_report
from disagg_train.report.run_folder import read_folder
from disagg_train.schedule.file import load_schedule
from disagg_train.trainer import Trainer
from tests.checkpoints import load_weights
from tests.ray.jobs import job_with

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_END_S = 20.0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    folder = tmp_path_factory.mktemp("run")
    trainer = Trainer(
        job_with(
            "train.steps=6", "train.evaluation={every_steps: 3, samples: 8}", f"output={folder}"
        )
    )
    steps = [(record.step, (folder / "trace.json").exists()) for record in trainer.fit()]
    assert steps == [(step, step >= 4) for step in range(6)], "a trace is there once it can be"
    return trainer


def test_metrics_hold_one_object_per_step(finished: Trainer) -> None:
    lines = (finished.output / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == list(range(6))
    wanted = {"step", "loss", "grad_norm", "lr", "num_target_tokens", "step_time_s", "modules"}
    assert wanted <= set(records[0])
    vision = records[1]["modules"]["vision"]
    assert min(vision["forward_s"], vision["backward_s"], vision["boundary_s"]) > 0
    assert vision["boundary_bytes"] > 0


def test_the_trace_has_a_row_per_rank(finished: Trainer) -> None:
    events = json.loads((finished.output / "trace.json").read_text())["traceEvents"]
    names = {e["args"]["name"] for e in events if e["ph"] == "M"}
    assert names == {"encoders 0", "encoders 1", "language 0", "language 1"}
    assert {e["tid"] for e in events if e["ph"] == "X"} == {0, 1, 2, 3}


def test_the_report_has_the_recorded_steps_with_their_plans(finished: Trainer) -> None:
    run = read_folder(finished.output)
    assert [step.number for step in run.steps] == [1, 2, 3, 4]
    assert [step.plan.step for step in run.steps if step.plan] == [1, 2, 3, 4]
    assert not run.missing
    page = write_report(finished.output).read_text()
    assert "Slowest rank" in page
    assert "could not" not in page and "cannot be simulated" not in page


def test_the_schedule_is_saved_as_it_was_run(finished: Trainer) -> None:
    schedule, _ = job_schedules(finished.job)
    assert load_schedule(finished.output / "schedule.yaml") == schedule


def test_activations_are_counted_in_traced_steps(finished: Trainer) -> None:
    counted = [record.step for record in finished.records if record.peak_activation_bytes]
    assert counted == [1, 2, 3, 4]


def test_the_model_was_evaluated_when_it_should_be(finished: Trainer) -> None:
    assert [evaluation.step for evaluation in finished.evaluations] == [3, 6]
    assert len(finished.evaluations[-1].answers) == 8


def test_the_checkpoint_holds_every_weight(finished: Trainer) -> None:
    weights = load_weights(finished.output)
    assert {name.partition(".")[0] for name in weights} == {"vision", "language"}
    assert all(np.isfinite(tensor).all() for tensor in weights.values())


def test_pictures_are_drawn(finished: Trainer) -> None:
    assert (finished.output / "curve.png").stat().st_size > 10_000
    assert (finished.output / "predictions.png").stat().st_size > 5_000


def test_leaving_the_loop_early_ends_the_actors_and_keeps_what_was_traced(tmp_path: Path) -> None:
    before = _rank_processes()
    steps = Trainer(job_with("train.steps=50", f"output={tmp_path}")).fit()
    assert [next(steps).step for _ in range(3)] == [0, 1, 2]
    started = _rank_processes() - before
    assert len(started) == 4
    steps.close()
    until = time.monotonic() + _END_S
    while started & _rank_processes() and time.monotonic() < until:
        time.sleep(0.05)
    assert not started & _rank_processes()
    assert load_trace(tmp_path / "trace.json").numbers == [1, 2]


def _rank_processes() -> set[int]:
    """Return the live processes that are rank actors."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text()
        except OSError:
            continue
        if "ray::RankActor" in command:
            found.add(int(folder.name))
    return found
