"""A rank's samples: decoded ahead, once, on several threads, and held against the index."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from threading import Barrier, Event

import numpy as np
import pytest

from disagg_train.config.load import load_job
from disagg_train.data.source import IGNORE, Sample, Split
from disagg_train.engine.samples import SampleLoader
from disagg_train.errors import DataError
from disagg_train.planner.in_order import in_order
from disagg_train.planner.step_plan import SampleSize, Slot, StepPlan
from tests.unit.config.jobs import JOB

_ENCODERS = load_job(JOB).encoders
_PATCH = _ENCODERS["vision"].model.patch_size  # type: ignore[union-attr]
_DEADLINE_S = 20.0


class _Source:
    """Samples with an image each; some keys cannot be loaded."""

    def __init__(self, together: int = 1) -> None:
        self.loads: Counter[int] = Counter()
        self.errors: dict[int, Exception] = {}
        self.columns = 2
        self._barrier = Barrier(together)

    def load(self, key: int) -> Sample:
        self._barrier.wait(_DEADLINE_S)
        self.loads[key] += 1
        if key in self.errors:
            raise self.errors[key]
        labels = np.full(4, IGNORE)
        labels[-1] = 1
        image = np.zeros((_PATCH, _PATCH * self.columns, 1), np.float32)
        return Sample(key, np.zeros(4, np.int64), labels, {"vision": [image]})

    def sizes(self, split: Split) -> Sequence[SampleSize]:
        return [_size(key) for key in range(4)]

    def text(self, token_ids: Sequence[int]) -> str:
        return ""


def _size(key: int) -> SampleSize:
    return SampleSize(key, 4, 1, {"vision": (Slot(0, 1),)}, {"vision": (2,)})


def _plan(keys: Sequence[int], step: int = 0, dp: int = 1) -> StepPlan:
    assignment = {name: in_order(len(keys), 2, dp) for name in ("vision", "language")}
    return StepPlan(step, tuple(_size(key) for key in keys), assignment)


@pytest.fixture
def source() -> _Source:
    return _Source()


def _loader(source: _Source, lanes: Sequence[tuple[str, int]] | None = None) -> SampleLoader:
    return SampleLoader(source, lanes or [("vision", 0), ("language", 0)], _ENCODERS, 2)


def test_all_modules_of_a_rank_share_what_was_decoded(source: _Source) -> None:
    loader = _loader(source)
    loader.start(_plan(range(6)))
    first = [loader.load(key) for key in range(6)]
    assert all(loader.load(key) is sample for key, sample in enumerate(first))
    assert source.loads == Counter(range(6))


def test_only_the_samples_of_this_ranks_lanes_are_loaded(source: _Source) -> None:
    loader, plan = _loader(source, [("language", 1)]), _plan(range(8), dp=2)
    assert loader.bad(plan) == ()
    held = {i for microbatch in range(2) for i in plan.held("language", microbatch, 1)}
    assert set(source.loads) == held


def test_inputs_of_encoders_that_are_elsewhere_are_not_asked_for(source: _Source) -> None:
    asked: list[set[str]] = []

    def load_part(key: int, encoders: Collection[str]) -> Sample:
        asked.append(set(encoders))
        sample = source.load(key)
        return sample if encoders else replace(sample, inputs={})

    source.load_part = load_part  # type: ignore[attr-defined]
    assert _loader(source, [("language", 0)]).bad(_plan(range(2))) == ()
    assert _loader(source).bad(_plan(range(2))) == ()
    assert asked == [set(), set(), {"vision"}, {"vision"}]


def test_samples_are_decoded_side_by_side() -> None:
    source = _Source(together=2)
    assert _loader(source).bad(_plan(range(4))) == ()


def test_bad_samples_are_reported_with_their_reasons(source: _Source) -> None:
    source.errors = {2: DataError("sample 2: truncated"), 4: FileNotFoundError("gone.jpg")}
    found = _loader(source).bad(_plan(range(6)))
    assert [bad.key for bad in found] == [2, 4]
    assert found[0].reason == "sample 2: truncated"
    assert found[1].reason == "sample 4 cannot be read: gone.jpg"


def test_a_file_of_other_dimensions_than_the_index_says_is_bad(source: _Source) -> None:
    source.columns = 3
    (found, *_) = _loader(source).bad(_plan(range(1)))
    assert "inputs of [3] tokens for 'vision' where its index says [2]" in found.reason


def test_other_errors_are_no_bad_samples(source: _Source) -> None:
    source.errors = {1: ZeroDivisionError("our bug")}
    with pytest.raises(ZeroDivisionError):
        _loader(source).bad(_plan(range(3)))


def test_a_mended_plan_decodes_only_what_is_new(source: _Source) -> None:
    loader = _loader(source)
    source.errors = {1: DataError("bad")}
    assert [bad.key for bad in loader.bad(_plan((0, 1, 2)))] == [1]
    assert loader.bad(_plan((0, 2, 3))) == ()
    assert source.loads == Counter((0, 1, 2, 3))


def test_samples_of_two_steps_are_kept_until_each_is_forgotten(source: _Source) -> None:
    loader, first, second = _loader(source), _plan((0, 1)), _plan((1, 2), step=1)
    loader.bad(first)
    loader.bad(second)
    loader.forget(first)
    for key in (0, 1, 2):
        loader.load(key)
    assert source.loads == Counter({0: 2, 1: 1, 2: 1})
    loader.forget(second)
    loader.load(1)
    assert source.loads[1] == 2


def test_closing_does_not_wait_for_what_was_not_begun() -> None:
    source, go = _Source(), Event()
    waiting = source.load

    def load(key: int) -> Sample:
        assert go.wait(_DEADLINE_S)
        return waiting(key)

    source.load = load  # type: ignore[method-assign]
    loader = _loader(source)
    loader.start(_plan(range(40)))
    go.set()
    loader.close()
    assert len(source.loads) < 40
