"""What the driver sends for one step: sample ids, their sizes, who computes what when."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate, chain
from typing import Any, Self

from disagg_train.errors import PlanError


@dataclass(frozen=True)
class Slot:
    """A run of placeholders in a fused sequence: ``count`` tokens from ``position`` on."""

    position: int
    count: int


def _count(slots: Sequence[Slot]) -> int:
    return sum(slot.count for slot in slots)


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
        return _count(self.slots.get(encoder, ()))


def _sample(content: Mapping[str, Any]) -> SampleSize:
    slots = {
        encoder: tuple(Slot(**slot) for slot in each) for encoder, each in content["slots"].items()
    }
    inputs = {encoder: tuple(lengths) for encoder, lengths in content["input_tokens"].items()}
    return SampleSize(**{**content, "slots": slots, "input_tokens": inputs})


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
        return {}

    def offsets(self, encoder: str) -> tuple[int, ...]:
        """Return the global token ids' offsets: sample i owns ``[offsets[i], offsets[i+1])``."""
        if encoder not in self._offsets:
            slots = [sample.slots.get(encoder, ()) for sample in self.samples]
            counts = [each[0].count if len(each) == 1 else _count(each) for each in slots]
            self._offsets[encoder] = tuple(accumulate(counts, initial=0))
        return self._offsets[encoder]

    def seats(self, module: str) -> Sequence[int]:
        """Return the seat of each sample: ``microbatch * dp + dp rank``."""
        if module not in self._seats:
            found = [0] * len(self.samples)
            for seat, lane in enumerate(chain.from_iterable(self.assignment[module])):
                for index in lane:
                    found[index] = seat
            self._seats[module] = found
        return self._seats[module]

    @cached_property
    def _seats(self) -> dict[str, list[int]]:
        return {}

    def dp(self, module: str) -> int:
        """Return the data-parallel degree of a module."""
        return len(self.assignment[module][0])

    def held(self, module: str, microbatch: int, dp_rank: int) -> tuple[int, ...]:
        """Return the sample indices of one microbatch on one dp rank."""
        return self.assignment[module][microbatch][dp_rank]

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Return the plan that ``as_dict``, and perhaps JSON, made plain data of."""
        samples = tuple(_sample(sample) for sample in content["samples"])
        assignment = {
            module: tuple(tuple(tuple(lane) for lane in microbatch) for microbatch in held)
            for module, held in content["assignment"].items()
        }
        return cls(content["step"], samples, assignment, content["learning_rate"])

    @cached_property
    def digest(self) -> int:
        """A 63-bit digest; ranks compare it before a step's first exchange."""
        samples = [
            (
                sample.key,
                sample.sequence_tokens,
                sample.target_tokens,
                [
                    (e, [(s.position, s.count) for s in sample.slots[e]])
                    for e in sorted(sample.slots)
                ],
                sorted(sample.input_tokens.items()),
            )
            for sample in self.samples
        ]
        content = self.step, samples, sorted(self.assignment.items()), self.learning_rate
        text = json.dumps(content).encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
