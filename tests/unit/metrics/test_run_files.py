"""A run's files tell each step once, also after it went back or was resumed."""

import json
from dataclasses import replace
from pathlib import Path

from disagg_train.metrics.records import (
    Answer,
    BadSample,
    Evaluation,
    RankReport,
    Span,
    StepRecord,
)
from disagg_train.metrics.run_files import RunFiles
from disagg_train.metrics.sinks import JsonLines, read_json_lines
from disagg_train.metrics.trace import load_trace
from tests.unit.metrics.steps import record


def _record(step: int, loss: float = 1.0) -> StepRecord:
    return replace(record(step, loss), bad_samples=(BadSample(7, "gone"),))


def _evaluation(step: int) -> Evaluation:
    return Evaluation(step, 1.0, 0.5, 0.5, 0.5, (Answer(1, "2", "3"),))


def _lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_going_back_takes_steps_back(tmp_path: Path) -> None:
    with RunFiles(tmp_path, lists_samples=True) as files:
        for step in range(4):
            files.add_step(_record(step), [2 * step, 2 * step + 1])
            files.add_evaluation(_evaluation(step + 1))
        files.rewind(2)
        files.add_step(_record(2, loss=5.0), [4, 5])
    assert [r.step for r in files.records] == [0, 1, 2]
    assert [line["loss"] for line in _lines(tmp_path / "metrics.jsonl")] == [1.0, 1.0, 5.0]
    assert [line["step"] for line in _lines(tmp_path / "evaluations.jsonl")] == [1, 2]
    keys = [key for line in _lines(tmp_path / "samples.jsonl") for key in line["keys"]]
    assert keys == [0, 1, 2, 3, 4, 5]


def test_a_resumed_run_goes_on_with_what_its_checkpoint_had_behind_it(tmp_path: Path) -> None:
    with RunFiles(tmp_path) as files:
        for step in range(3):
            files.add_step(_record(step), [])
        files.add_evaluation(_evaluation(2))
        files.add_evaluation(_evaluation(3))
    with RunFiles(tmp_path, steps_done=2) as files:
        assert files.records == [_record(0), _record(1)]
        assert files.evaluations == [_evaluation(2)]
        files.add_step(_record(2), [])
    assert [line["step"] for line in _lines(tmp_path / "metrics.jsonl")] == [0, 1, 2]


def test_a_new_run_begins_empty(tmp_path: Path) -> None:
    with RunFiles(tmp_path) as files:
        files.add_step(_record(0), [])
        files.add_evaluation(_evaluation(0))
    with RunFiles(tmp_path) as files:
        assert not files.records
        assert not files.evaluations
    assert not _lines(tmp_path / "metrics.jsonl")


def test_failures_are_added_to_those_of_earlier_starts(tmp_path: Path) -> None:
    for step in (3, 5):
        with RunFiles(tmp_path) as files:
            report = files.write_failure({"step": step}, f"rank died in step {step}")
            assert report.read_text() == f"rank died in step {step}"
    assert [line["step"] for line in _lines(tmp_path / "failures.jsonl")] == [3, 5]
    assert len(list((tmp_path / "failures").iterdir())) == 2


def test_a_line_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1, "lo')
    assert read_json_lines(path) == [{"step": 0}]
    with JsonLines(path, lambda _: True) as lines:
        lines.write({"step": 1})
    assert [line["step"] for line in _lines(path)] == [0, 1]


def test_the_plans_and_traces_of_recorded_steps_are_told_once(tmp_path: Path) -> None:
    reports = {
        step: [RankReport(0, spans=[Span("agree", "", "update", step, step + 0.5)])]
        for step in (1, 2, 3)
    }
    with RunFiles(tmp_path) as files:
        for step in (1, 2):
            files.add_trace(step, reports[step], {"step": step})
        files.write_trace({0: "encoders 0"})
        files.rewind(2)
        files.add_trace(2, reports[3], {"step": 2})
        files.write_trace({0: "encoders 0"})
    assert _lines(tmp_path / "plans.jsonl") == [{"step": 1}, {"step": 2}]
    trace = load_trace(tmp_path / "trace.json")
    assert (trace.numbers, trace.rows) == ([1, 2], {0: "encoders 0"})
    assert [step[0].spans[0].begin_s for step in trace.steps] == [1, 3]


def test_a_trace_stays_where_a_later_start_records_nothing(tmp_path: Path) -> None:
    with RunFiles(tmp_path) as files:
        files.add_trace(1, [RankReport(0, spans=[Span("agree", "", "update", 1, 2)])], {"step": 1})
        files.write_trace({0: "encoders 0"})
    with RunFiles(tmp_path, steps_done=5) as files:
        files.write_trace({0: "encoders 0"})
    assert load_trace(tmp_path / "trace.json").numbers == [1]


def test_a_new_run_has_no_trace_and_no_bad_samples_of_an_earlier_one(tmp_path: Path) -> None:
    names = ("trace.json", "bad_samples.jsonl")
    for steps_done, stay in ((3, True), (0, False)):
        for name in names:
            (tmp_path / name).write_text("{}")
        RunFiles(tmp_path, steps_done).close()
        assert [(tmp_path / name).exists() for name in names] == [stay, stay]
