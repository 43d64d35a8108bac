"""Strata, and what single moves and swaps improve on them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from disagg_train.planner.local_search import Bounds, improved, loads
from disagg_train.planner.strata import stratified

seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int, resources: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.lognormal(0.0, 1.0, (int(rng.integers(1, 60)), resources))


@given(seeds, st.integers(1, 3), st.integers(1, 6))
def test_every_microbatch_gets_one_sample_of_each_stratum(
    seed: int, resources: int, microbatches: int
) -> None:
    at_S = stratified(drawn(seed, resources), microbatches)
    counts = np.bincount(at_S, minlength=microbatches)
    assert len(counts) == microbatches and counts.max() - counts.min() <= 1


def test_the_heaviest_of_a_stratum_goes_to_the_lightest_microbatch() -> None:
    weights_SR = np.array([[9.0], [5.0], [4.0], [1.0]])
    assert stratified(weights_SR, 2).tolist() == [0, 1, 1, 0]


def test_ties_are_broken_by_a_resource_of_little_weight() -> None:
    texts = [[0.0, 9e-3], [0.0, 5e-3], [0.0, 4e-3], [0.0, 1e-3]]
    weights_SR = np.array([[7.0, 0.0], [7.0, 0.0], *texts])
    at_S = stratified(weights_SR, 2)
    assert loads(weights_SR, at_S, 2)[:, 0].tolist() == [7.0, 7.0]
    assert sorted(loads(weights_SR, at_S, 2)[:, 1].round(4).tolist()) == [0.009, 0.01]


@given(seeds, st.integers(1, 3), st.integers(1, 6))
def test_improving_keeps_to_the_bounds_and_never_raises_the_sum_of_eighth_powers(
    seed: int, resources: int, microbatches: int
) -> None:
    weights_SR = drawn(seed, resources)
    rng = np.random.default_rng(seed)
    at_S = rng.integers(0, microbatches, len(weights_SR))
    first_S = rng.integers(0, at_S + 1)
    last_S = rng.integers(at_S, microbatches)
    found_S = improved(weights_SR, at_S, Bounds(first_S, last_S), microbatches)
    assert (first_S <= found_S).all() and (found_S <= last_S).all()
    before, after = ((loads(weights_SR, x, microbatches) ** 8).sum() for x in (at_S, found_S))
    assert after <= before * (1 + 1e-9)


def test_a_swap_evens_out_what_no_move_does() -> None:
    weights_SR = np.array([[6.0], [4.0], [3.0], [5.0]])
    at_S = np.array([0, 0, 1, 1])
    anywhere = Bounds(np.zeros(4, np.int64), np.ones(4, np.int64))
    found_S = improved(weights_SR, at_S, anywhere, 2)
    assert loads(weights_SR, found_S, 2)[:, 0].tolist() == [9.0, 9.0]
