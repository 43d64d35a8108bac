"""Fits find the coefficients that made the rows, never below zero, and say how far they are off."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disagg_train.errors import PlanError
from disagg_train.planner.fit import PassRow, fit_pass, fit_transfer

positive = st.floats(1e-6, 1e-2)
SIZES = [(count, length) for count in (1, 4) for length in (50, 120, 300, 700, 1500)]


def rows_of(a: float, b: float, c: float, noise: float = 0.0) -> list[PassRow]:
    rng = np.random.default_rng(0)
    rows = []
    for count, length in SIZES:
        tokens, squares = float(count * length), float(count * length**2)
        exact_s = a * tokens + b * squares + c
        rows.append((tokens, squares, exact_s * (1 + noise * rng.uniform(-1, 1))))
    return rows


@settings(max_examples=30)
@given(positive, positive, positive)
def test_exact_rows_give_their_coefficients_back(a: float, b: float, c: float) -> None:
    fit = fit_pass(rows_of(a, b / 100, c))
    found_s = [fit.cost.per_token_s, fit.cost.per_square_s]
    assert found_s == pytest.approx([a, b / 100], rel=1e-4, abs=1e-12)
    assert fit.error.worst < 1e-6
    assert fit.held_out is not None
    assert fit.held_out.worst < 1e-5


@settings(max_examples=30)
@given(st.lists(st.tuples(*[st.floats(1.0, 1e4)] * 2, st.floats(1e-6, 10.0)), min_size=1))
def test_no_coefficient_is_ever_negative_and_errors_are_what_they_say(rows: list[PassRow]) -> None:
    fit = fit_pass(rows)
    a, b, c = fit.per_token_s, fit.per_square_s, fit.per_microbatch_s
    assert min(a, b, c) >= 0.0
    errors = [abs(a * t + b * q + c - s) / s for t, q, s in rows]
    assert fit.error.worst == pytest.approx(max(errors), abs=1e-9)
    assert fit.error.median <= fit.error.worst


@settings(max_examples=30)
@given(st.lists(st.tuples(*[st.floats(1.0, 1e4)] * 2, st.floats(1e-3, 10.0)), min_size=3))
def test_no_nearby_coefficients_fit_better(rows: list[PassRow]) -> None:
    fit = fit_pass(rows)
    terms = np.array([(t, q, 1.0) for t, q, _ in rows])
    seconds = np.array([s for _, _, s in rows])

    def residual(found: np.ndarray) -> float:
        return float(np.sum(((terms @ found - seconds) / seconds) ** 2))

    best = np.array([fit.per_token_s, fit.per_square_s, fit.per_microbatch_s])
    step = 1e-3 * seconds.mean() / terms.max(axis=0)
    for sign in (1.0, -1.0):
        for axis in range(3):
            other = best.copy()
            other[axis] = max(0.0, other[axis] + sign * step[axis])
            assert residual(best) <= residual(other) + 1e-7


def test_noise_of_a_tenth_moves_the_prediction_by_less() -> None:
    fit = fit_pass(rows_of(1e-4, 1e-8, 1e-3, noise=0.1))
    assert fit.error.median < 0.1
    assert fit.error.worst < 0.2


def test_small_microbatches_count_as_much_as_large_ones() -> None:
    """Absolute errors would let the one large row decide."""
    fit = fit_pass([(10.0, 0.0, 1.0), (11.0, 0.0, 1.1), (1e5, 0.0, 2e4)])
    assert fit.per_token_s * 10 + fit.per_microbatch_s == pytest.approx(1.0, rel=0.2)


def test_rows_without_tokens_say_nothing() -> None:
    rows = rows_of(1e-4, 1e-8, 1e-3)
    assert fit_pass([(0.0, 0.0, 5.0), *rows]) == fit_pass(rows)
    with pytest.raises(PlanError, match="none of 1 measured rows"):
        fit_pass([(0.0, 0.0, 5.0)])


def test_few_rows_hold_none_out() -> None:
    assert fit_pass(rows_of(1e-4, 1e-8, 1e-3)[:5]).held_out is None


@settings(max_examples=30)
@given(positive, st.floats(1e6, 1e11))
def test_transfers_give_latency_and_bandwidth_back(latency_s: float, bytes_per_s: float) -> None:
    sizes = [1e3, 1e5, 1e7, 1e9]
    fit = fit_transfer([(size, latency_s + size / bytes_per_s) for size in sizes])
    assert fit.latency_s == pytest.approx(latency_s, rel=1e-3)
    assert fit.bytes_per_s == pytest.approx(bytes_per_s, rel=1e-3)


def test_transfers_of_one_size_have_no_bandwidth_to_tell() -> None:
    fit = fit_transfer([(1e6, 0.5), (1e6, 0.5)])
    assert fit.latency_s + 1e6 * fit.per_byte_s == pytest.approx(0.5)
