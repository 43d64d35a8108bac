"""Two contestants that train the same steps, in alternation. Pure.

A block is four runs of a few consecutive steps, ABBA or BAAB; its ratio is that of the sums.
Both contestants live all the time, one of them idle.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from disagg_train.bench.statistics import Interval, bootstrap_interval
from disagg_train.errors import ConfigError, PlanError

STEPS_PER_RUN = 3
_RUNS_OF_EACH = 2
_SAME_LOSS = 1e-5


class Contestant(Protocol):
    """Trains a job step after step, always the next ones.

    Args:
        name: in results and errors.
        losses: of every step that it trained.
    """

    name: str
    losses: list[float]

    def run(self, count: int) -> float:
        """Train the next ``count`` steps; return seconds per step."""


@dataclass(frozen=True)
class Paired:
    """One contestant against another; times per step in milliseconds, medians over runs.

    Args:
        ours_ms: the first.
        other_ms: the second.
        ratio: median of the blocks' ratios, ours / other.
        ratio_interval_95: bootstrap interval of that median.
        a_a_interval_95: the same of each block's two runs of the other against each other.
        samples_ms: every run's time per step, by contestant.
    """

    ours_ms: float
    other_ms: float
    ratio: float
    ratio_interval_95: Interval
    a_a_interval_95: Interval
    samples_ms: Mapping[str, Sequence[float]]


def num_steps(blocks: int) -> int:
    """Return how many steps a contestant trains, the warm-up included.

    Raises:
        ConfigError: there is no block to measure.
    """
    if blocks < 1:
        raise ConfigError(
            f"blocks={blocks}: use at least 1, and 20 for an interval that means much"
        )
    return (blocks * _RUNS_OF_EACH + 1) * STEPS_PER_RUN


def alternate(
    ours: Contestant, other: Contestant, blocks: int, steps_per_run: int = STEPS_PER_RUN
) -> Paired:
    """Let both warm up and hold their losses against each other, then measure.

    Raises:
        PlanError: the two do not train the same.
        RankError: a rank died, hung or raised.
    """
    for contestant in (ours, other):
        contestant.run(STEPS_PER_RUN)
    _check_same(ours, other)
    paired = _measure(ours, other, blocks, steps_per_run)
    _check_same(ours, other)
    return paired


def measure(
    ours: Contestant, other: Contestant, blocks: int, steps_per_run: int = STEPS_PER_RUN
) -> Paired:
    """Let both warm up, then measure; whether they train the same is not looked at."""
    for contestant in (ours, other):
        contestant.run(STEPS_PER_RUN)
    return _measure(ours, other, blocks, steps_per_run)


def _measure(ours: Contestant, other: Contestant, blocks: int, steps_per_run: int) -> Paired:
    samples_s: dict[str, list[float]] = {ours.name: [], other.name: []}
    for block in range(blocks):
        outer, inner = (ours, other) if block % 2 == 0 else (other, ours)
        for contestant in (outer, inner, inner, outer):
            samples_s[contestant.name].append(contestant.run(steps_per_run))
    return _paired(samples_s[ours.name], samples_s[other.name], samples_s)


def _check_same(ours: Contestant, other: Contestant) -> None:
    for step, (mine, theirs) in enumerate(zip(ours.losses, other.losses, strict=True)):
        if abs(mine - theirs) > _SAME_LOSS * max(abs(theirs), 1.0):
            raise PlanError(
                f"step {step}: loss {mine} by {ours.name}, {theirs} by {other.name}; "
                f"they do not train the same, so their times say nothing"
            )


def _paired(
    ours_s: Sequence[float], other_s: Sequence[float], samples_s: Mapping[str, Sequence[float]]
) -> Paired:
    mine, theirs = _by_block(ours_s), _by_block(other_s)
    ratios = [sum(ours) / sum(other) for ours, other in zip(mine, theirs, strict=True)]
    return Paired(
        ours_ms=1e3 * median(ours_s),
        other_ms=1e3 * median(other_s),
        ratio=median(ratios),
        ratio_interval_95=bootstrap_interval(ratios),
        a_a_interval_95=bootstrap_interval([first / second for first, second in theirs]),
        samples_ms={name: [1e3 * s for s in times] for name, times in samples_s.items()},
    )


def _by_block(times_s: Sequence[float]) -> list[tuple[float, float]]:
    """Return a contestant's two runs of each block."""
    return list(zip(times_s[::2], times_s[1::2], strict=True))
