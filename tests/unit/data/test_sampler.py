"""The order of samples is a hash: stable, different each epoch, and indifferent to removals."""

from collections import Counter
from itertools import islice
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_train.data.sampler import batches, epoch_order
from disagg_train.errors import DataError
from disagg_train.planner.step_plan import SampleSize


def test_an_epoch_visits_every_sample_once() -> None:
    assert sorted(epoch_order(range(100), seed=1, epoch=0)) == list(range(100))


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(epoch_order(range(50), s, e)) for s in (0, 1) for e in (0, 1, 2)]
    assert len(set(orders)) == len(orders)


def test_taking_a_sample_away_moves_no_other() -> None:
    keys = list(range(40))
    order = [keys[i] for i in epoch_order(keys, seed=5, epoch=2)]
    rest = [key for key in keys if key != 17]
    assert [rest[i] for i in epoch_order(rest, 5, 2)] == [key for key in order if key != 17]


def test_batches_run_on_over_the_end_of_an_epoch() -> None:
    sizes = [SampleSize(key, 4, 1) for key in range(10)]
    seen = [size.key for batch in islice(batches(sizes, 0, 4), 5) for size in batch]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))


def test_taken_out_samples_leave_the_batches_of_a_data_set_without_them() -> None:
    sizes = [SampleSize(key, 4, 1) for key in range(10)]
    mended = batches(sizes, 3, 4)
    next(mended)
    third = next(mended)
    taken_out = {third[1].key, third[2].key}
    mended.take_out(taken_out)
    rest = [size for size in sizes if size.key not in taken_out]
    seen = [size.key for batch in islice(mended, 6) for size in batch]
    never_there = [size.key for batch in islice(batches(rest, 3, 4), 7) for size in batch]
    assert taken_out.isdisjoint(seen)
    assert seen == never_there[4:]


def test_what_has_no_room_begins_the_next_batch() -> None:
    sizes = [SampleSize(key, 4, 1) for key in range(10)]
    in_pairs = batches(sizes, 0, 5, lambda samples: min(len(samples), 2))
    seen = [size.key for batch in islice(in_pairs, 5) for size in batch]
    assert seen == [size.key for batch in islice(batches(sizes, 0, 10), 1) for size in batch]


def test_a_data_set_of_which_nothing_is_left_says_so() -> None:
    sampled = batches([SampleSize(0, 4, 1)], 0, 1)
    next(sampled)
    sampled.take_out({0})
    with pytest.raises(DataError, match="no sample is left"):
        next(sampled)


def test_weights_of_one_change_nothing() -> None:
    keys = np.arange(50, dtype=np.uint64) * 977
    weighted = epoch_order(keys, 3, 1, np.ones(50))
    assert (weighted == epoch_order(keys, 3, 1)).all()


@given(st.lists(st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.0]), min_size=1, max_size=40))
def test_a_sample_is_visited_as_often_as_its_weight_says(weights: list[float]) -> None:
    keys, epochs = range(len(weights)), 4
    visits = [Counter(epoch_order(keys, 0, e, np.array(weights)).tolist()) for e in range(epochs)]
    for sample, weight in enumerate(weights):
        assert all(floor(weight) <= seen[sample] <= ceil(weight) for seen in visits)


def test_half_a_weight_is_another_half_of_the_samples_each_epoch() -> None:
    halves = [set(epoch_order(range(2000), 0, e, np.full(2000, 0.5)).tolist()) for e in (0, 1)]
    assert all(900 < len(half) < 1100 for half in halves)
    assert 400 < len(halves[0] & halves[1]) < 600


def test_taking_a_weighted_sample_away_moves_no_other() -> None:
    keys, weights = np.arange(40), np.linspace(0.3, 2.6, 40)
    order = keys[epoch_order(keys, 5, 2, weights)]
    rest = keys != 17
    left = keys[rest][epoch_order(keys[rest], 5, 2, weights[rest])]
    assert (left == order[order != 17]).all()


def test_visits_of_one_sample_are_spread_over_the_epoch() -> None:
    order = epoch_order(range(500), 0, 0, np.full(500, 2.0))
    assert (order[1:] == order[:-1]).sum() < 10
