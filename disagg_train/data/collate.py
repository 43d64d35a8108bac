"""Samples of one microbatch and dp rank -> arrays over the full stream of their sequences.

Where each sequence starts, and how much padding there is, the stream says; a rank of the
lane then takes the positions of its own (``context_positions``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from disagg_train.data.source import IGNORE, Sample
from disagg_train.data.tokens import InputTokens, Ints
from disagg_train.errors import DataError
from disagg_train.topology.stream import Stream


@dataclass(frozen=True)
class PackedInputs:
    """Tokens of several inputs of an encoder in one sequence; P positions, X values per token.

    Args:
        values_PX: what each token is made of; 0 in the padding, as all else.
        rows_P: patch row of each in its image, or its number in its recording.
        columns_P: patch column.
        inputs_P: number of the input that it is of.
        grids: rows and columns of each input.
    """

    values_PX: NDArray[np.float32]
    rows_P: Ints
    columns_P: Ints
    inputs_P: Ints
    grids: tuple[tuple[int, int], ...]

    def at(self, positions_P: Ints) -> "PackedInputs":
        """Return the tokens at some positions."""
        return PackedInputs(
            self.values_PX[positions_P],
            self.rows_P[positions_P],
            self.columns_P[positions_P],
            self.inputs_P[positions_P],
            self.grids,
        )


@dataclass(frozen=True)
class PackedText:
    """Fused sequences, one after the other; T positions.

    Args:
        token_ids_T: tokens, 0 in the padding.
        labels_T: the token that follows each position, ``IGNORE`` where there is no loss.
        answers: positions of each sample's answer, first and past the last.
    """

    token_ids_T: Ints
    labels_T: Ints
    answers: tuple[tuple[int, int], ...]


def context_positions(stream: Stream, unit: int = 1) -> Ints:
    """Return the positions ``[cp, T]`` that each cp rank of a lane holds, in row order.

    Args:
        stream: of tokens.
        unit: positions per token; an encoder's tokens before they are merged.
    """
    ranks = [
        [np.arange(start * unit, stop * unit) for start, stop in stream.context_intervals(cp_rank)]
        for cp_rank in range(stream.cut.cp)
    ]
    return np.stack([np.concatenate([*parts, np.zeros(0, np.int64)]) for parts in ranks])


def token_numbers(stream: Stream, merge: int) -> Ints:
    """Return which of all inputs' tokens, one input after the other, each cp rank holds.

    Args:
        stream: of projector output tokens.
        merge: encoder tokens per token of the stream.

    Returns:
        ``[cp, P]``; -1 where a row is padding.
    """
    numbers = np.full(stream.num_positions * merge, -1)
    first = 0
    for start, length in zip(stream.starts, stream.lengths, strict=False):
        count = length * merge
        numbers[start * merge : start * merge + count] = np.arange(first, first + count)
        first += count
    mine: Ints = numbers[context_positions(stream, merge)]
    return mine


def pack_inputs(
    inputs: Sequence[InputTokens], values_per_token: int, merge: int, stream: Stream
) -> PackedInputs:
    """Lay an encoder's inputs out over a stream.

    Args:
        inputs: one per sequence of the stream.
        values_per_token: X.
        merge: encoder tokens per token of the stream.
        stream: of projector output tokens.

    Raises:
        DataError: an input has other tokens than the index says.
    """
    length = stream.num_positions * merge
    packed = PackedInputs(
        np.zeros((length, values_per_token), np.float32),
        np.zeros(length, np.int64),
        np.zeros(length, np.int64),
        np.zeros(length, np.int64),
        tuple(each.grid for each in inputs),
    )
    for number, (each, start) in enumerate(zip(inputs, stream.starts, strict=False)):
        _check_input(each, values_per_token, stream.lengths[number] * merge)
        at = slice(start * merge, start * merge + len(each))
        packed.values_PX[at], packed.inputs_P[at] = each.values_TX, number
        packed.rows_P[at], packed.columns_P[at] = each.rows_T, each.columns_T
    return packed


def _check_input(found: InputTokens, values_per_token: int, num_tokens: int) -> None:
    if found.values_TX.shape != (num_tokens, values_per_token):
        raise DataError(
            f"an input makes {len(found)} tokens of {found.values_TX.shape[1]} values where its "
            f"index and the encoder say {num_tokens} of {values_per_token}; rebuild the index"
        )


def pack_text(samples: Sequence[Sample], stream: Stream) -> PackedText:
    """Lay fused sequences out over a stream.

    Args:
        samples: in assignment order, one per sequence of the stream.
        stream: of fused sequences.
    """
    token_ids = np.zeros(stream.num_positions, np.int64)
    labels = np.full(stream.num_positions, IGNORE)
    answers = []
    for sample, start in zip(samples, stream.starts, strict=False):
        stop = start + len(sample.token_ids_S)
        token_ids[start:stop], labels[start:stop] = sample.token_ids_S, sample.labels_S
        answers.append((start + sample.answer_start, stop))
    return PackedText(token_ids, labels, tuple(answers))
