"""What a run tells of its steps: in memory, and in files that people and programs read.

When a run goes back to an earlier step, what came after it is taken back here too, so that the
files tell how the weights that there are came to be, each step once.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from disagg_train.metrics.records import Evaluation, RankReport, StepRecord
from disagg_train.metrics.sinks import JsonLines, read_json_lines
from disagg_train.metrics.trace import write_trace

_OF_ONE_RUN = ("trace.json", "bad_samples.jsonl")
"""Files of an earlier run in the folder that do not wait until this one has the like."""


class RunFiles:
    """Records of a run: ``metrics.jsonl``, ``evaluations.jsonl`` and, if asked, ``samples.jsonl``.

    Of traced steps also ``trace.json``, and the step plans in ``plans.jsonl``.

    Args:
        folder: the run's output folder.
        steps_done: steps of an earlier start of the run that stay; 0 begins anew.
        lists_samples: whether ``samples.jsonl`` is written.
    """

    def __init__(self, folder: Path, steps_done: int = 0, lists_samples: bool = False) -> None:
        self._folder = folder
        kept = [r for r in read_json_lines(folder / "metrics.jsonl") if r["step"] < steps_done]
        self.records = [StepRecord.from_dict(record) for record in kept]
        self.evaluations: list[Evaluation] = []
        for record in read_json_lines(folder / "evaluations.jsonl"):
            if record["step"] <= steps_done and steps_done:
                self.evaluations.append(Evaluation.from_dict(record))
        self._open = contextlib.ExitStack()
        self._metrics = self._file("metrics.jsonl", steps_done)
        self._evaluations = self._file("evaluations.jsonl", steps_done + 1 if steps_done else 0)
        self._samples = self._file("samples.jsonl", steps_done) if lists_samples else None
        self._plans = self._file("plans.jsonl", steps_done)
        self._traced: dict[int, Sequence[RankReport]] = {}
        self.has_new_traces = False
        """Whether steps were traced since ``trace.json`` was written."""
        if not steps_done:
            for name in _OF_ONE_RUN:
                (folder / name).unlink(missing_ok=True)

    def _file(self, name: str, before: int) -> JsonLines:
        lines = JsonLines(self._folder / name, lambda record: record["step"] < before)
        return self._open.enter_context(lines)

    def add_step(self, record: StepRecord, keys: Sequence[int]) -> None:
        """Note a step that is done, and the keys of its samples."""
        self.records.append(record)
        self._metrics.write(record.as_dict())
        if self._samples is not None:
            self._samples.write({"step": record.step, "keys": list(keys)})

    def add_trace(self, step: int, reports: Sequence[RankReport], plan: Mapping[str, Any]) -> None:
        """Note what the ranks did in a step, and its plan as plain data."""
        self._traced[step] = reports
        self._plans.write(plan)
        self.has_new_traces = True

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Note an evaluation."""
        self.evaluations.append(evaluation)
        self._evaluations.write(evaluation.as_dict())

    def rewind(self, steps_done: int) -> None:
        """Take back all steps but the first ``steps_done``, and the evaluations after them."""
        self.records[:] = [r for r in self.records if r.step < steps_done]
        self.evaluations[:] = [e for e in self.evaluations if e.step <= steps_done]
        self._traced = {step: r for step, r in self._traced.items() if step < steps_done}
        self.has_new_traces &= bool(self._traced)
        self._metrics.rewind(lambda record: record["step"] < steps_done)
        self._plans.rewind(lambda plan: plan["step"] < steps_done)
        self._evaluations.rewind(lambda record: record["step"] <= steps_done)
        if self._samples is not None:
            self._samples.rewind(lambda record: record["step"] < steps_done)

    def write_trace(self, row_names: Mapping[int, str]) -> None:
        """Write ``trace.json``, unless an earlier start of the run has done all traced steps."""
        path, numbers = self._folder / "trace.json", sorted(self._traced)
        if self.has_new_traces or not path.exists():
            write_trace(path, [self._traced[step] for step in numbers], row_names, numbers)
            self.has_new_traces = False

    def write_failure(self, record: Mapping[str, Any], text: str) -> Path:
        """Append to ``failures.jsonl``, and write a report for people; return its path."""
        with JsonLines(self._folder / "failures.jsonl", lambda _: True) as failures:
            failures.write(record)
        folder = self._folder / "failures"
        folder.mkdir(exist_ok=True)
        report = folder / f"{len(list(folder.glob('*.txt'))) + 1:03d}-step-{record['step']}.txt"
        report.write_text(text)
        return report

    def close(self) -> None:
        """Close all files."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
