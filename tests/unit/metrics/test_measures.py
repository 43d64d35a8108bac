"""What is derived of a step, by hand."""

from dataclasses import replace

from disagg_train.metrics.measures import Standing, evaluated_step, measure
from disagg_train.metrics.records import RankReport
from tests.unit.metrics.steps import evaluation, measures, record, reports


def test_a_rank_is_idle_when_it_runs_no_forward_or_backward() -> None:
    found = measures(0)
    assert found.module_bubble == {"vision": 0.75, "language": 0.25}
    assert found.bubble == 0.5


def test_colocated_modules_share_their_ranks_bubble() -> None:
    both = [replace(each, modules=("vision", "language")) for each in reports()]
    found = measure(record(0), both, Standing())
    assert found.module_bubble == {"vision": 0.5, "language": 0.5}


def test_a_boundary_s_load_is_of_all_ranks_and_of_the_whole_step() -> None:
    assert measures(0).boundary_gbytes_per_s == {"vision->language": 2.0}


def test_tokens_are_per_second_of_the_step() -> None:
    found = measures(0)
    assert found.record.tokens_per_s == 25.0
    assert found.target_tokens_per_s == 15.0


def test_what_is_not_known_is_left_out() -> None:
    found = measure(record(0), [RankReport(0, ("vision",))], Standing()).scalars()
    assert not {"speed/mfu", "speed/bubble", "train/loss_scale"} & found.keys()
    assert "memory/peak_activation_bytes" not in found
    assert "modules/vision/bubble" not in found


def test_what_is_known_is_named_for_trackers() -> None:
    scaled = replace(record(0), loss_scale=64.0, peak_activation_bytes=5)
    found = measure(scaled, reports(), Standing(3, 2, 1, 4, {"plans": 1}), 0.4).scalars()
    assert found["speed/mfu"] == 0.4
    assert found["train/loss_scale"] == 64.0
    assert found["memory/peak_activation_bytes"] == 5
    assert found["boundaries/vision_to_language/gbytes_per_s"] == 2.0
    assert found["modules/vision/backward_s"] == 0.2
    assert found["queues/plans"] == 1
    of_the_run = {name: value for name, value in found.items() if name.startswith("run/")}
    assert of_the_run == {
        "run/skipped_steps": 2,
        "run/skipped_samples": 0,
        "run/restarts": 3,
        "run/checkpoints": 1,
        "run/steps_at_risk": 4,
    }


def test_a_step_without_time_divides_by_nothing() -> None:
    found = measure(record(0, step_time_s=0.0), reports(), Standing())
    assert found.target_tokens_per_s == 0.0
    assert set(found.boundary_gbytes_per_s.values()) == {0.0}


def test_an_evaluation_is_shown_with_the_step_before_it() -> None:
    assert [evaluated_step(evaluation(done)) for done in (0, 1, 8)] == [0, 0, 7]
