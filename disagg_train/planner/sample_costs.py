"""What a sample costs each module: ``a * tokens + b * sum(len^2)``, and ``c`` per microbatch.

Coefficients are fitted to measurements or follow from the sizes of the model
(``analytic_costs``). Samples are held in columns, so that sums over thousands of them are quick.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from disagg_train.config.job import LANGUAGE
from disagg_train.planner.step_plan import SampleSize
from disagg_train.schedule.ops import OpKind

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_WHOLE_PASSES = (OpKind.FORWARD, OpKind.BACKWARD)


@dataclass(frozen=True)
class PassCost:
    """Seconds that a lane's ranks spend on a pass of one microbatch.

    Args:
        per_token_s: for each token (a).
        per_square_s: for the square of each sequence's length (b).
        per_microbatch_s: once (c).
    """

    per_token_s: float
    per_square_s: float = 0.0
    per_microbatch_s: float = 0.0

    def __mul__(self, times: float) -> "PassCost":
        """Return what it costs where everything takes so many times as long."""
        return PassCost(
            self.per_token_s * times, self.per_square_s * times, self.per_microbatch_s * times
        )

    def __add__(self, other: "PassCost") -> "PassCost":
        """Return both passes, one after the other."""
        return PassCost(
            self.per_token_s + other.per_token_s,
            self.per_square_s + other.per_square_s,
            self.per_microbatch_s + other.per_microbatch_s,
        )

    def of_samples(self, tokens: Floats, squares: Floats) -> Floats:
        """Return the seconds that samples add to their microbatch."""
        return self.per_token_s * tokens + self.per_square_s * squares

    def of_lanes(self, tokens: Floats, squares: Floats) -> Floats:
        """Return the seconds of lanes; one without tokens computes nothing."""
        return self.of_samples(tokens, squares) + self.per_microbatch_s * (tokens > 0)


@dataclass(frozen=True)
class StageCost:
    """What one stage of a module costs each of its ranks.

    Args:
        passes: by kind of op.
        bytes_per_token: of activations that a rank keeps for the backward.
        once_s: seconds of the ops that come once a step.
    """

    passes: Mapping[OpKind, PassCost]
    bytes_per_token: float = 0.0
    once_s: Mapping[OpKind, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ModuleCost:
    """What a module costs.

    Args:
        stages: in order.
    """

    stages: tuple[StageCost, ...]

    def sample_s(self, tokens: Floats, squares: Floats) -> Floats:
        """Return the seconds of each sample's forward and backward, of all stages together."""
        passes = [stage.passes[kind] for stage in self.stages for kind in _WHOLE_PASSES]
        found = [each.of_samples(tokens, squares) for each in passes]
        return np.sum(found, axis=0, dtype=np.float64)

    def stretched(self, times: float) -> "ModuleCost":
        """Return what it costs where every pass takes so many times as long."""
        return ModuleCost(
            tuple(
                replace(each, passes={kind: cost * times for kind, cost in each.passes.items()})
                for each in self.stages
            )
        )

    @property
    def bytes_per_token(self) -> float:
        """Bytes of activations per token on the rank that keeps most."""
        return max(stage.bytes_per_token for stage in self.stages)


@dataclass(frozen=True)
class SampleTable:
    """The sizes of S samples in columns.

    Args:
        tokens: per module, what it computes on: an encoder's inputs, the LLM's sequences.
        squares: per module, the sum of its squared sequence lengths.
        rows: per encoder, the tokens that it gives the LLM.
    """

    tokens: Mapping[str, Floats]
    squares: Mapping[str, Floats]
    rows: Mapping[str, Floats]

    @classmethod
    def of(cls, samples: Sequence[SampleSize], encoders: Sequence[str]) -> "SampleTable":
        """Return the table of some samples.

        Args:
            samples: in any order.
            encoders: that may compute on them.
        """
        lengths = np.array([sample.sequence_tokens for sample in samples], np.float64)
        tokens, squares = {LANGUAGE: lengths}, {LANGUAGE: lengths**2}
        rows = {}
        for encoder in encoders:
            inputs = [sample.input_tokens.get(encoder, ()) for sample in samples]
            tokens[encoder], squares[encoder] = _sums(inputs)
            slots = [sample.slots.get(encoder, ()) for sample in samples]
            rows[encoder], _ = _sums([[slot.count for slot in each] for each in slots])
        return cls(tokens, squares, rows)

    def __len__(self) -> int:
        return len(self.tokens[LANGUAGE])


def _sums(lengths: Sequence[Sequence[int]]) -> tuple[Floats, Floats]:
    """Return the sums of each sample's lengths, and of their squares."""
    counts = np.fromiter(map(len, lengths), np.int64, len(lengths))
    flat = np.fromiter(chain.from_iterable(lengths), np.float64, int(counts.sum()))
    owners = np.repeat(np.arange(len(lengths)), counts)
    return (
        np.bincount(owners, flat, len(lengths)),
        np.bincount(owners, flat**2, len(lengths)),
    )
