"""A sampler that is restored goes on to the sample as the one whose state was taken."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_train.data.sampler import Batches
from disagg_train.data.sizes import InputSizes, SizeTable
from disagg_train.errors import CheckpointError
from disagg_train.planner.step_plan import SampleSize

_NO_INPUTS = InputSizes(
    np.zeros(0, np.int16), np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int32)
)


def _table(weights: Sequence[float]) -> SizeTable:
    count = len(weights)
    tokens_N = (3 + np.arange(count) % 5).astype(np.int32)
    keys_N = np.arange(count, dtype=np.uint64) * np.uint64(977) + np.uint64(2**63)
    first_N = np.zeros(count + 1, np.int64)
    return SizeTable(keys_N, tokens_N, tokens_N, np.array(weights), first_N, _NO_INPUTS, ())


def _fitting(tokens: int) -> Callable[[Sequence[SampleSize]], int]:
    """Return how many samples go into so many tokens, the first one at least."""

    def count(samples: Sequence[SampleSize]) -> int:
        totals = np.cumsum([sample.sequence_tokens for sample in samples])
        return max(1, int((totals <= tokens).sum()))

    return count


@dataclass(frozen=True)
class _Case:
    sizes: Sequence[SampleSize]
    seed: int
    batch_size: int
    tokens: int

    def batches(self) -> Batches:
        return Batches(self.sizes, self.seed, self.batch_size, _fitting(self.tokens))


_weights = st.lists(st.sampled_from([0.25, 0.5, 1.0, 1.0, 1.5, 3.0]), min_size=4, max_size=30)
_tables = _weights.filter(lambda weights: max(weights) >= 1.0).map(_table)
_lists = st.integers(4, 30).map(lambda n: [SampleSize(7 * k, 3 + k % 5, 1) for k in range(n)])
_cases = st.builds(
    _Case, st.one_of(_tables, _lists), st.integers(0, 9), st.integers(1, 12), st.integers(3, 80)
)


def _take_out(batches: Batches, keys: Sequence[int]) -> None:
    """Take samples out, if any; even to take out none gives the newest batch back."""
    if keys:
        batches.take_out(set(keys))


@st.composite
def _mended(draw: st.DrawFn) -> tuple[_Case, list[list[int]]]:
    """A case, and keys to take out after each of some batches; one sample always stays."""
    case = draw(_cases)
    weights = case.sizes.weights_N if isinstance(case.sizes, SizeTable) else None
    stays = 0 if weights is None else int(weights.argmax())
    others = [size.key for i, size in enumerate(case.sizes) if i != stays]
    taken = st.lists(st.sampled_from(others), max_size=2)
    return case, draw(st.lists(st.one_of(st.just([]), taken), max_size=9))


@given(_mended(), st.data())
def test_a_restored_sampler_goes_on_as_if_nothing_had_been(
    mended: tuple[_Case, list[list[int]]], data: st.DataObject
) -> None:
    case, taken = mended
    going_on = case.batches()
    before = data.draw(st.integers(0, len(taken)))
    for keys in taken[:before]:
        next(going_on)
        _take_out(going_on, keys)
    state = json.loads(json.dumps(going_on.state()))
    restored = case.batches()
    restored.restore(state)
    assert restored.state() == state
    for keys in [*taken[before:], []]:
        assert next(restored) == next(going_on)
        _take_out(restored, keys)
        _take_out(going_on, keys)
        assert restored.state() == going_on.state()
    assert list(islice(restored, 5)) == list(islice(going_on, 5))


@given(_mended())
def test_a_sampler_goes_back_to_any_of_its_states(
    mended: tuple[_Case, list[list[int]]],
) -> None:
    case, taken = mended
    batches, states, seen = case.batches(), [], []
    for _ in range(len(taken) + 1):
        states.append(batches.state())
        seen.append(next(batches))
    for start in reversed(range(len(states))):
        batches.restore(states[start])
        assert list(islice(batches, len(seen) - start)) == seen[start:]


def test_batches_may_have_another_size_afterwards() -> None:
    sizes = [SampleSize(key, 4, 1) for key in range(10)]
    of_three, of_five = Batches(sizes, 0, 3), Batches(sizes, 0, 5)
    next(of_three)
    of_five.restore(of_three.state())
    seen = [size.key for batch in islice(of_three, 5) for size in batch]
    assert [size.key for batch in islice(of_five, 3) for size in batch] == seen


def test_a_state_is_small() -> None:
    batches = Batches([SampleSize(key, 4, 1) for key in range(5000)], 0, 64)
    next(batches)
    batches.take_out({5, 7})
    assert len(json.dumps(batches.state())) < 300


_SIZES = [SampleSize(key, 4, 1) for key in range(10)]


@pytest.mark.parametrize(
    "other",
    [
        Batches(_SIZES[:9], 0, 4),
        Batches([*_SIZES[:9], SampleSize(77, 4, 1)], 0, 4),
        Batches(_SIZES, 1, 4),
    ],
    ids=["fewer samples", "another sample", "another seed"],
)
def test_another_data_set_is_refused(other: Batches) -> None:
    batches = Batches(_SIZES, 0, 4)
    with pytest.raises(CheckpointError, match=r"10 samples \(.*, seed 0\); now .*`start_from`"):
        other.restore(batches.state())


def test_other_weights_are_another_data_set() -> None:
    table = _table([1.0, 2.0, 0.5])
    other = replace(table, weights_N=np.array([1.0, 2.0, 1.5]))
    with pytest.raises(CheckpointError, match="not the one of the checkpoint"):
        Batches(other, 0, 2).restore(Batches(table, 0, 2).state())
