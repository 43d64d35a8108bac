"""Samples of one microbatch and dp rank -> arrays over the full stream of their sequences.

Where each sequence starts, and how much padding there is, the stream says; a rank of the
lane then takes the positions of its own (``context_positions``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from disagg_train.data.source import IGNORE, Sample
from disagg_train.topology.stream import Stream

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PackedImages:
    """Patches of several images in one sequence; P positions, X values per patch.

    Args:
        patches_PX: flattened patches, column by column within an image; 0 in the padding.
        rows_P: patch row of each patch in its image.
        columns_P: patch column.
    """

    patches_PX: NDArray[np.float32]
    rows_P: Ints
    columns_P: Ints

    def at(self, positions_P: Ints) -> "PackedImages":
        """Return the patches at some positions."""
        return PackedImages(
            self.patches_PX[positions_P], self.rows_P[positions_P], self.columns_P[positions_P]
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
        unit: positions per token; an encoder's patches before they are merged.
    """
    ranks = [
        [np.arange(start * unit, stop * unit) for start, stop in stream.context_intervals(cp_rank)]
        for cp_rank in range(stream.cut.cp)
    ]
    return np.stack([np.concatenate([*parts, np.zeros(0, np.int64)]) for parts in ranks])


def pack_images(
    images: Sequence[NDArray[np.float32]], patch_size: int, merge: int, stream: Stream
) -> PackedImages:
    """Lay images out over a stream.

    Args:
        images: ``[height, width, channels]`` each, one per sequence of the stream.
        patch_size: side of a patch in pixels.
        merge: patches per token of the stream.
        stream: of projector output tokens.
    """
    length = stream.num_positions * merge
    values = patch_size**2 * images[0].shape[2]
    packed = PackedImages(
        np.zeros((length, values), np.float32),
        np.zeros(length, np.int64),
        np.zeros(length, np.int64),
    )
    for image, start in zip(images, stream.starts, strict=False):
        patches, rows, columns = _patches(image, patch_size)
        at = slice(start * merge, start * merge + len(patches))
        packed.patches_PX[at], packed.rows_P[at], packed.columns_P[at] = patches, rows, columns
    return packed


def _patches(image: NDArray[np.float32], side: int) -> tuple[NDArray[np.float32], Ints, Ints]:
    """Cut an image into patches, column by column: strips then read in writing order."""
    height, width, channels = image.shape
    rows, columns = height // side, width // side
    grid = image.reshape(rows, side, columns, side, channels)
    patches = grid.transpose(2, 0, 1, 3, 4).reshape(rows * columns, side * side * channels)
    return patches, np.tile(np.arange(rows), columns), np.repeat(np.arange(columns), rows)


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
