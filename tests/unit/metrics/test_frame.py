"""Steps as a pandas frame: a row each, the modules' times beside it."""

import sys

import pytest

from disagg_train.errors import DisaggTrainError
from disagg_train.metrics.frame import step_frame
from disagg_train.metrics.records import ModuleTimes, StepRecord


def _record(step: int) -> StepRecord:
    modules = {"vision": ModuleTimes(0.1, 0.2, 0.3, 4), "language": ModuleTimes(0.5, 1.0, 0.3, 4)}
    return StepRecord(step, 2.0 - step, 1.0, 0.1, 3, 5, 0.5, False, 7, 0, modules)


def test_there_is_a_row_per_step() -> None:
    frame = step_frame([_record(0), _record(1)])
    assert list(frame.index) == [0, 1]
    assert frame.index.name == "step"
    assert list(frame["loss"]) == [2.0, 1.0]
    assert list(frame["tokens_per_s"]) == [10.0, 10.0]


def test_modules_are_columns() -> None:
    frame = step_frame([_record(0)])
    assert frame.loc[0, "vision.backward_s"] == 0.2
    assert frame.loc[0, "language.boundary_bytes"] == 4
    assert not any(isinstance(value, dict | tuple) for value in frame.loc[0])


def test_before_the_first_step_the_columns_are_there() -> None:
    frame = step_frame([])
    assert len(frame) == 0
    assert {"loss", "step_time_s"} <= set(frame.columns)


def test_without_pandas_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(DisaggTrainError, match=r"pip install 'disagg_train\[notebook\]'"):
        step_frame([_record(0)])
