"""The drift of encoders against the LLM is said once, when it stays, and with both figures."""

import pytest

from disagg_train.config.load import load_job
from disagg_train.config.resize import resized
from disagg_train.metrics.records import RankReport, Span, mean_busy_s
from disagg_train.planner.drift import DriftMonitor
from tests.unit.config.jobs import JOB, refusal

PLANNED_S = {"vision": 0.1, "audio": 0.1, "language": 0.4}
PLAN = "plan={busy_s: {vision: 0.1, language: 0.4}, lowest: 0.5, highest: 1.5}"
PATIENCE = 5


def monitor(lowest: float = 0.5, highest: float | None = 1.5) -> DriftMonitor:
    ranks = {"vision": 2, "audio": 2, "language": 4}
    return DriftMonitor(PLANNED_S, ranks, lowest, highest, PATIENCE)


def notes(watch: DriftMonitor, times: float, steps: int, all_times: float = 1.0) -> list[str]:
    """Return what is said over some steps in which encoders take so many times as long."""
    observed_s = {
        name: planned_s * all_times * (1.0 if name == "language" else times)
        for name, planned_s in PLANNED_S.items()
    }
    found = [watch.observe(observed_s) for _ in range(steps)]
    return [note for note in found if note]


@pytest.mark.parametrize("times", [0.6, 1.0, 1.4])
def test_nothing_is_said_inside_the_margin(times: float) -> None:
    assert notes(monitor(), times, 200) == []


@pytest.mark.parametrize(("times", "end"), [(0.4, "below 0.50"), (2.0, "above 1.50")])
def test_outside_the_margin_one_note_has_both_figures_and_the_way_out(
    times: float, end: str
) -> None:
    (note,) = notes(monitor(), times, 200)
    assert f"is {times:.2f} times what this layout was planned for, {end} for 5 steps" in note
    assert f"vision {0.1 * times:.3g} s in place of 0.1 s" in note
    assert "disagg-train plan JOB --profile" in note


def test_a_slower_machine_is_no_drift() -> None:
    assert notes(monitor(), 1.0, 200, all_times=3.0) == []


def test_a_few_heavy_steps_are_no_drift() -> None:
    watch = monitor()
    notes(watch, 1.0, 20)
    assert notes(watch, 3.0, 3) + notes(watch, 1.0, 50) == []


def test_the_first_step_is_passed_over() -> None:
    watch = monitor()
    assert notes(watch, 1000.0, 1) + notes(watch, 1.0, 50) == []


def test_who_comes_back_and_leaves_again_is_told_again() -> None:
    watch = monitor()
    assert len(notes(watch, 2.0, 50)) == 1
    assert notes(watch, 1.0, 50) == []
    assert len(notes(watch, 2.0, 50)) == 1


def test_an_end_without_a_rival_is_no_end() -> None:
    assert notes(monitor(highest=None), 100.0, 100) == []
    assert notes(monitor(lowest=0.0), 0.001, 100) == []


def test_only_a_planned_job_is_watched() -> None:
    assert DriftMonitor.of(load_job(JOB)) is None
    assert DriftMonitor.of(load_job(JOB, [PLAN])) is not None


def test_a_resized_job_is_not_watched_any_more() -> None:
    job = resized(load_job(JOB, [PLAN]), "encoders", 4)
    assert DriftMonitor.of(job) is None


def test_a_plan_of_other_modules_is_refused() -> None:
    found = refusal("plan={busy_s: {language: 0.4}}")
    assert "remove `plan`, or plan again" in found


def test_a_module_s_time_is_the_mean_of_its_ranks() -> None:
    def report(place: int, seconds: float) -> RankReport:
        spans = [
            Span("forward language 0", "language", "forward", 0.0, seconds),
            Span("backward language 0", "language", "backward", 0.0, 2 * seconds),
            Span("send_forward language->x 0", "language->x", "boundary", 0.0, 9.0),
        ]
        return RankReport(place, modules=("language",), spans=spans)

    assert mean_busy_s([report(0, 1.0), report(1, 3.0)], ["language"]) == {"language": 6.0}
