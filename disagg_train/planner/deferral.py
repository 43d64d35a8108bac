"""Entrain's second level: the LLM puts work of its heavy microbatches off to light ones.

Microbatches are put in an order in which every heavy one is followed by a light one, its pair;
samples' LLM work moves from the heavy to the light. An encoder still computes them in the heavy
one, and keeps their activations for so much longer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np

from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.errors import PlanError
from disagg_train.planner.local_search import Bounds, improved
from disagg_train.planner.sample_costs import Floats, Ints
from disagg_train.planner.seats import Seats
from disagg_train.planner.step_plan import Assignment, SampleSize
from disagg_train.schedule.graph import Reach


@dataclass(frozen=True)
class Kept:
    """Activations of an encoder that samples put off make its ranks keep.

    Args:
        bytes_S: of each sample.
        lane_S: the dp rank that keeps them.
        dp: number of dp ranks.
    """

    bytes_S: Floats
    lane_S: Ints
    dp: int

    def most(self, encoded_at_S: Ints, at_S: Ints, num_microbatches: int) -> float:
        """Return the most bytes that a rank keeps of samples that are put off, at any time."""
        kept = np.zeros((num_microbatches + 1, self.dp))
        np.add.at(kept, (encoded_at_S, self.lane_S), self.bytes_S)
        np.add.at(kept, (at_S, self.lane_S), -self.bytes_S)
        return float(kept.cumsum(axis=0).max(initial=0.0))


@dataclass(frozen=True)
class Deferral:
    """How far, and how much, the LLM may put off.

    Args:
        reach: how late a sample may be taken.
        most_bytes: that a rank of an encoder may keep of samples put off; None for no limit.
    """

    reach: Reach
    most_bytes: float | None = None
    kept: Sequence[Kept] = field(default=())

    def fits(self, encoded_at_S: Ints, at_S: Ints, num_microbatches: int) -> bool:
        """Whether an assignment of the LLM keeps to both limits."""
        last_S = last_consumers(encoded_at_S, self.reach)
        if (at_S < encoded_at_S).any() or (at_S > last_S).any():
            return False
        if self.most_bytes is None:
            return True
        return all(
            kept.most(encoded_at_S, at_S, num_microbatches) <= self.most_bytes for kept in self.kept
        )


def reach_of(job: JobConfig, encoder: str) -> Reach:
    """Return how late the LLM may take a sample after an encoder.

    What is put off beyond a window of colocated encoders would keep the window's activations.
    """
    train, module = job.train, job.modules[encoder]
    window = train.window if module.group == job.language.group else None
    return Reach(train.deferral_span, window)


def last_consumers(encoded_at_S: Ints, reach: Reach) -> Ints:
    """Return the last microbatch in which the LLM may take each sample."""
    last_S: Ints = encoded_at_S + reach.span
    if reach.window:
        last_S = np.minimum(last_S, (encoded_at_S // reach.window + 1) * reach.window - 1)
    return last_S


def check_order(
    samples: Sequence[SampleSize], assignment: Mapping[str, Assignment], job: JobConfig
) -> None:
    """Check that the LLM takes every sample after its encoders, and not too late.

    Args:
        samples: of the step.
        assignment: of every module.
        job: says how late that is.

    Raises:
        PlanError: it takes one too early or too late.
    """
    language_S = Seats.of(assignment[LANGUAGE]).microbatch_S
    for encoder in assignment.keys() - {LANGUAGE}:
        encoded_S = Seats.of(assignment[encoder]).microbatch_S
        reach = reach_of(job, encoder)
        last_S = last_consumers(encoded_S, reach)
        for i in np.flatnonzero((language_S < encoded_S) | (language_S > last_S)).tolist():
            if samples[i].tokens(encoder):
                raise PlanError(
                    f"sample {samples[i].key} is encoded by {encoder!r} in microbatch "
                    f"{encoded_S[i]} and taken by the LLM in {language_S[i]}; with "
                    f"train.deferral_span={reach.span}{_windows(reach)} it must be one of "
                    f"{encoded_S[i]} to {last_S[i]}"
                )


def _windows(reach: Reach) -> str:
    return f" and train.window={reach.window}" if reach.window else ""


def heavy_before_light(weights_S: Floats, at_S: Ints, num_microbatches: int) -> Ints:
    """Return the same microbatches in another order: the i-th heaviest, then the i-th lightest.

    Args:
        weights_S: the LLM's seconds of each sample.
        at_S: the microbatch of each sample.
        num_microbatches: of the step.
    """
    heaviest_first = np.argsort(-np.bincount(at_S, weights_S, num_microbatches), kind="stable")
    half = (num_microbatches + 1) // 2
    order = np.empty(num_microbatches, np.int64)
    order[0::2] = heaviest_first[:half]
    order[1::2] = heaviest_first[half:][::-1]
    place_M = np.empty(num_microbatches, np.int64)
    place_M[order] = np.arange(num_microbatches)
    return place_M[at_S]


def put_off(
    weights_S: Floats, encoded_at_S: Ints, free_S: Ints, num_microbatches: int, limits: Deferral
) -> Ints:
    """Return the LLM's microbatch of each sample.

    Args:
        weights_S: the LLM's seconds of each sample.
        encoded_at_S: the microbatch in which encoders compute it.
        free_S: the samples that no encoder computes on.
        num_microbatches: of the step.
        limits: of what may be put off.
    """
    at_S = encoded_at_S.copy()
    for heavy in range(0, num_microbatches - 1, 2):
        if heavy + 1 in limits.reach.consumers(heavy):
            _even_out(weights_S, at_S, heavy, num_microbatches, limits)
    first_S = encoded_at_S.copy()
    last_S = np.minimum(last_consumers(encoded_at_S, limits.reach), num_microbatches - 1)
    first_S[free_S], last_S[free_S] = 0, num_microbatches - 1
    found_S = improved(weights_S[:, None], at_S, Bounds(first_S, last_S), num_microbatches)
    encoded_S = encoded_at_S.copy()
    encoded_S[free_S] = found_S[free_S]
    return found_S if limits.fits(encoded_S, found_S, num_microbatches) else at_S


def _even_out(
    weights_S: Floats, at_S: Ints, heavy: int, num_microbatches: int, limits: Deferral
) -> None:
    """Put samples of a microbatch off to the next one, until both have the same work.

    Pairs are neighbours that no other pair reaches into, so a rank keeps nothing but this pair's.
    """
    loads_M = np.bincount(at_S, weights_S, num_microbatches)
    excess_s = (loads_M[heavy] - loads_M[heavy + 1]) / 2
    room = [
        np.full(kept.dp, inf if limits.most_bytes is None else limits.most_bytes)
        for kept in limits.kept
    ]
    held = np.flatnonzero(at_S == heavy)
    for sample in held[np.argsort(-weights_S[held], kind="stable")].tolist():
        kept = [
            (left, each.lane_S[sample], each.bytes_S[sample])
            for left, each in zip(room, limits.kept, strict=True)
        ]
        if weights_S[sample] > excess_s or any(left[lane] < size for left, lane, size in kept):
            continue
        at_S[sample] = heavy + 1
        excess_s -= weights_S[sample]
        for left, lane, size in kept:
            left[lane] -= size
