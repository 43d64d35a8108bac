"""Medians, how sure they are, and how alike two orders are. Pure."""

from collections.abc import Sequence
from statistics import median

import numpy as np

Interval = tuple[float, float]

_RESAMPLES = 4000


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Return the 95% interval of the median of ``values``, by the percentile bootstrap.

    Args:
        values: independent measurements, for example one paired ratio per block.
        seed: of the resampling; the same values and seed give the same interval.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    measured = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(len(measured), size=(_RESAMPLES, len(measured)))
    low, high = np.percentile(np.median(measured[drawn], axis=1), [2.5, 97.5])
    return float(low), float(high)


def median_ms(samples_s: Sequence[float]) -> float:
    """Return the median of seconds, in milliseconds."""
    return 1e3 * median(samples_s)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's coefficient of two series without ties."""
    one, other = (np.argsort(np.argsort(values)) for values in (first, second))
    return float(np.corrcoef(one, other)[0, 1])


def ratio(numerator: float, denominator: float | None) -> float | None:
    """Return a ratio, or None where there is nothing to compare with."""
    return numerator / denominator if denominator else None
