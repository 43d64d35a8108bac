"""Coefficients from measured seconds: of passes over tokens and squares, of transfers over bytes.

Least squares of the relative errors, so that small microbatches count as much as large ones. No
coefficient is below zero: there are at most three, so every choice of those that are above zero
is solved, and the best one without a negative coefficient is the optimum (the active set of
Lawson and Hanson's NNLS is one of these choices).
"""

from collections.abc import Sequence
from itertools import combinations
from math import inf
from typing import Self

import numpy as np

from disagg_train.config.base import Config
from disagg_train.errors import PlanError
from disagg_train.planner.sample_costs import Floats, PassCost

_HELD_OUT, _LEAST_TO_HOLD_OUT = 3, 6
"""Every third row is held out, of so many or more."""


class Errors(Config):
    """How far predictions are off, relative to what was measured."""

    median: float
    """Of all rows."""
    worst: float
    """Of any row."""

    @classmethod
    def of(cls, predicted: Floats, measured: Floats) -> Self:
        """Return the errors of predictions; what was measured is above zero."""
        errors = np.abs(predicted - measured) / measured
        return cls(median=float(np.median(errors)), worst=float(errors.max()))


class PassFit(Config):
    """Seconds of a pass: ``a * tokens + b * squares + c``."""

    per_token_s: float
    """a."""
    per_square_s: float
    """b."""
    per_microbatch_s: float
    """c."""
    num_rows: int
    """Measured microbatches of a lane."""
    error: Errors
    """On the rows that were fitted to."""
    held_out: Errors | None
    """On every third row, fitted to the others; None where there are too few."""

    @property
    def cost(self) -> PassCost:
        """The coefficients."""
        return PassCost(self.per_token_s, self.per_square_s, self.per_microbatch_s)


class TransferFit(Config):
    """Seconds of a transfer: ``latency + bytes / bandwidth``."""

    latency_s: float
    """Until the first byte."""
    per_byte_s: float
    """One over the bandwidth."""
    num_rows: int
    """Measured transfers."""
    error: Errors
    """On the rows that were fitted to."""
    held_out: Errors | None
    """On every third row, fitted to the others; None where there are too few."""

    @property
    def bytes_per_s(self) -> float:
        """The bandwidth; infinite where the bytes made no difference."""
        return 1.0 / self.per_byte_s if self.per_byte_s else inf


PassRow = tuple[float, float, float]
"""Tokens, squares and seconds of one lane's microbatch."""
TransferRow = tuple[float, float]
"""Bytes and seconds of one transfer."""


def fit_pass(rows: Sequence[PassRow]) -> PassFit:
    """Fit one stage's passes of one kind.

    Args:
        rows: measured; those without tokens or without seconds say nothing and are left out.

    Raises:
        PlanError: no row is left.
    """
    table = _by_size([row for row in rows if row[0] > 0.0 and row[2] > 0.0], len(rows), "pass")
    per_token_s, per_square_s, per_microbatch_s = _nonnegative(*_pass_terms(table)).tolist()
    error, held_out = _errors(*_pass_terms(table))
    return PassFit(
        per_token_s=per_token_s,
        per_square_s=per_square_s,
        per_microbatch_s=per_microbatch_s,
        num_rows=len(table),
        error=error,
        held_out=held_out,
    )


def fit_transfer(rows: Sequence[TransferRow]) -> TransferFit:
    """Fit the transfers of one kind of link.

    Args:
        rows: measured; those without seconds are left out.

    Raises:
        PlanError: no row is left.
    """
    table = _by_size([row for row in rows if row[1] > 0.0], len(rows), "transfer")
    latency_s, per_byte_s = _nonnegative(*_transfer_terms(table)).tolist()
    error, held_out = _errors(*_transfer_terms(table))
    return TransferFit(
        latency_s=latency_s,
        per_byte_s=per_byte_s,
        num_rows=len(table),
        error=error,
        held_out=held_out,
    )


def _by_size(rows: Sequence[PassRow | TransferRow], num_measured: int, what: str) -> Floats:
    """Return the usable rows, small ones first: every third one is then of any size."""
    if not rows:
        raise PlanError(
            f"none of {num_measured} measured rows shows what a {what} takes; measure microbatches "
            f"that have tokens"
        )
    return np.array(sorted(rows), np.float64)


def _pass_terms(table: Floats) -> tuple[Floats, Floats]:
    tokens, squares, measured_s = table.T
    return np.stack([tokens, squares, np.ones(len(table))], axis=1), measured_s


def _transfer_terms(table: Floats) -> tuple[Floats, Floats]:
    num_bytes, measured_s = table.T
    return np.stack([np.ones(len(table)), num_bytes], axis=1), measured_s


def _errors(terms_RC: Floats, measured_R: Floats) -> tuple[Errors, Errors | None]:
    """Return the errors of a fit to all rows, and on held-out rows of a fit to the others."""
    error = Errors.of(terms_RC @ _nonnegative(terms_RC, measured_R), measured_R)
    if len(measured_R) < _LEAST_TO_HOLD_OUT:
        return error, None
    held_R = np.arange(len(measured_R)) % _HELD_OUT == 1
    found_C = _nonnegative(terms_RC[~held_R], measured_R[~held_R])
    return error, Errors.of(terms_RC[held_R] @ found_C, measured_R[held_R])


def _nonnegative(terms_RC: Floats, measured_R: Floats) -> Floats:
    """Return the coefficients >= 0 with the least squares of relative errors.

    Args:
        terms_RC: what the coefficients are of, per row.
        measured_R: above zero.
    """
    relative_RC = terms_RC / measured_R[:, None]
    scale_C = np.maximum(np.linalg.norm(relative_RC, axis=0), np.finfo(np.float64).tiny)
    scaled_RC, num_terms = relative_RC / scale_C, terms_RC.shape[1]
    best_C, least = np.zeros(num_terms), inf
    for count in range(1, num_terms + 1):
        for chosen in combinations(range(num_terms), count):
            columns = list(chosen)
            found, *_ = np.linalg.lstsq(scaled_RC[:, columns], np.ones(len(measured_R)))
            rest = float(np.sum((scaled_RC[:, columns] @ found - 1.0) ** 2))
            if found.min() >= 0.0 and rest < least - _NO_BETTER:
                best_C, least = np.zeros(num_terms), rest
                best_C[columns] = found
    return np.asarray(best_C / scale_C, np.float64)


_NO_BETTER = 1e-12
"""Fewer coefficients are kept where more are better by rounding alone."""
