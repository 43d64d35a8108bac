"""What the driver sends for one step: sample ids, their sizes, who computes what when."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property

from disagg_train.errors import PlanError


@dataclass(frozen=True)
class Slot:
    """A run of placeholders in a fused sequence: ``count`` tokens from ``position`` on."""

    position: int
    count: int


@dataclass(frozen=True)
class SampleSize:
    """What the driver knows of a sample without loading it.

    Args:
        key: the sample's id in the data source.
        sequence_tokens: length of the fused sequence, placeholders expanded.
        target_tokens: positions that carry a loss.
        slots: per encoder, where its projector's output tokens sit in the sequence, in
            token order; an encoder without input for this sample is absent.
        input_tokens: per encoder, what it computes: the tokens (patches) of each input.
    """

    key: int
    sequence_tokens: int
    target_tokens: int
    slots: Mapping[str, tuple[Slot, ...]] = field(default_factory=dict)
    input_tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def tokens(self, encoder: str) -> int:
        """Return how many projector output tokens ``encoder`` makes of this sample."""
        return sum(slot.count for slot in self.slots.get(encoder, ()))


Assignment = tuple[tuple[tuple[int, ...], ...], ...]
"""Of one module: [microbatch][dp rank] -> indices into the plan's samples."""


@dataclass(frozen=True)
class StepPlan:
    """One step of every rank, as plain data.

    Args:
        step: number of the step, from 0.
        samples: the step's samples in sampler order; global token ids follow this order.
        assignment: per module, which samples each microbatch of each dp rank holds.
        learning_rate: of this step's update.
    """

    step: int
    samples: tuple[SampleSize, ...]
    assignment: Mapping[str, Assignment]
    learning_rate: float = 0.0

    def __post_init__(self) -> None:
        for module, microbatches in self.assignment.items():
            held = sorted(i for lanes in microbatches for lane in lanes for i in lane)
            if held != list(range(len(self.samples))):
                raise PlanError(
                    f"step {self.step}: module {module!r} holds samples {held}; each of "
                    f"0..{len(self.samples) - 1} must be held exactly once"
                )
        counts = {module: len(parts) for module, parts in self.assignment.items()}
        if len(set(counts.values())) > 1:
            raise PlanError(f"step {self.step}: modules differ in microbatches: {counts}")

    @property
    def num_microbatches(self) -> int:
        """Number of microbatches, the same for every module."""
        return len(next(iter(self.assignment.values())))

    @property
    def num_target_tokens(self) -> int:
        """N: positions of the whole global batch that carry a loss."""
        return sum(sample.target_tokens for sample in self.samples)

    @cached_property
    def _offsets(self) -> dict[str, tuple[int, ...]]:
        encoders = {name for sample in self.samples for name in sample.slots}
        return {name: self._offsets_of(name) for name in encoders}

    def _offsets_of(self, encoder: str) -> tuple[int, ...]:
        offsets = [0]
        for sample in self.samples:
            offsets.append(offsets[-1] + sample.tokens(encoder))
        return tuple(offsets)

    def offsets(self, encoder: str) -> tuple[int, ...]:
        """Return the global token ids' offsets: sample i owns ``[offsets[i], offsets[i+1])``."""
        return self._offsets.get(encoder) or (0,) * (len(self.samples) + 1)

    def held(self, module: str, microbatch: int, dp_rank: int) -> tuple[int, ...]:
        """Return the sample indices of one microbatch on one dp rank."""
        return self.assignment[module][microbatch][dp_rank]

    @cached_property
    def digest(self) -> int:
        """A 63-bit digest; ranks compare it before a step's first exchange."""
        text = json.dumps(asdict(self), sort_keys=True).encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
