"""The order of samples is a hash: stable, different each epoch, and indifferent to removals."""

from itertools import islice

from disagg_train.data.sampler import batches, epoch_order
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
