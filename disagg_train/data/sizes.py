"""The sizes of many samples in columns: a million of them cost tens of bytes each."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from disagg_train.planner.step_plan import SampleSize, Slot


@dataclass(frozen=True)
class InputSizes:
    """The inputs of all samples, sample by sample and in sequence order; I inputs.

    Args:
        encoder_I: number of the encoder that takes it.
        position_I: of its first token in the fused sequence.
        tokens_I: that reach the LLM.
        computed_I: tokens that the encoder computes on.
    """

    encoder_I: NDArray[np.int16]
    position_I: NDArray[np.int32]
    tokens_I: NDArray[np.int32]
    computed_I: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class SizeTable(Sequence[SampleSize]):
    """Sizes of N samples; a ``SampleSize`` is made when one is asked for.

    Args:
        keys_N: of the samples.
        sequence_tokens_N: lengths of the fused sequences.
        target_tokens_N: positions with a loss.
        weights_N: visits per epoch.
        first_input_N: where each sample's inputs begin; one entry more than samples.
        inputs: of all samples.
        encoders: names, by number.
    """

    keys_N: NDArray[np.uint64]
    sequence_tokens_N: NDArray[np.int32]
    target_tokens_N: NDArray[np.int32]
    weights_N: NDArray[np.float64]
    first_input_N: NDArray[np.int64]
    inputs: InputSizes
    encoders: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys_N)

    def __iter__(self) -> Iterator[SampleSize]:
        return (self[i] for i in range(len(self)))

    def without(self, keys: Collection[int]) -> "SizeTable":
        """Return the sizes of all other samples."""
        stays_N = ~np.isin(self.keys_N, np.array(sorted(keys), np.uint64))
        counts_N = np.diff(self.first_input_N)
        stays_I = np.repeat(stays_N, counts_N)
        inputs = InputSizes(
            self.inputs.encoder_I[stays_I],
            self.inputs.position_I[stays_I],
            self.inputs.tokens_I[stays_I],
            self.inputs.computed_I[stays_I],
        )
        return SizeTable(
            self.keys_N[stays_N],
            self.sequence_tokens_N[stays_N],
            self.target_tokens_N[stays_N],
            self.weights_N[stays_N],
            np.append(0, np.cumsum(counts_N[stays_N])),
            inputs,
            self.encoders,
        )

    def suspects(self, encoders: Sequence[int], most_tokens: int | None) -> Sequence[int]:
        """Return the rows of samples that may break a rule, without looking at each.

        Args:
            encoders: numbers of those that the job does not have.
            most_tokens: of a fused sequence; no limit where not given.
        """
        inputs = self.inputs
        row_I = np.repeat(np.arange(len(self)), np.diff(self.first_input_N))
        end_I = inputs.position_I + inputs.tokens_I
        wrong_I = np.isin(inputs.encoder_I, encoders) | (end_I > self.sequence_tokens_N[row_I])
        wrong_I[1:] |= (row_I[1:] == row_I[:-1]) & (inputs.position_I[1:] < end_I[:-1])
        rows = [row_I[wrong_I]]
        if most_tokens is not None:
            rows.append(np.flatnonzero(self.sequence_tokens_N > most_tokens))
        return [int(row) for row in np.unique(np.concatenate(rows))]

    @overload
    def __getitem__(self, at: int) -> SampleSize: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[SampleSize]: ...
    def __getitem__(self, at: int | slice) -> SampleSize | Sequence[SampleSize]:
        if isinstance(at, slice):
            return tuple(self[i] for i in range(*at.indices(len(self))))
        row = range(len(self))[at]
        slots: dict[str, tuple[Slot, ...]] = {}
        computed: dict[str, tuple[int, ...]] = {}
        for i in range(int(self.first_input_N[row]), int(self.first_input_N[row + 1])):
            encoder = self.encoders[int(self.inputs.encoder_I[i])]
            slot = Slot(int(self.inputs.position_I[i]), int(self.inputs.tokens_I[i]))
            slots[encoder] = (*slots.get(encoder, ()), slot)
            computed[encoder] = (*computed.get(encoder, ()), int(self.inputs.computed_I[i]))
        return SampleSize(
            int(self.keys_N[row]),
            int(self.sequence_tokens_N[row]),
            int(self.target_tokens_N[row]),
            slots,
            computed,
        )
