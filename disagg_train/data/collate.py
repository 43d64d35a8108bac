"""Samples of one microbatch and dp rank -> packed arrays.

No sample is padded to another's size; only the stream's end is padded, to what tensor
parallelism needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from disagg_train.data.source import IGNORE, Sample

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PackedImages:
    """Patches of several images in one sequence; P patches of X values each.

    Args:
        patches_PX: flattened patches, column by column within an image.
        rows_P: patch row of each patch in its image.
        columns_P: patch column.
        lengths: patches of each image, then of the padding if there is any.
    """

    patches_PX: NDArray[np.float32]
    rows_P: Ints
    columns_P: Ints
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class PackedText:
    """Fused sequences in one stream of T tokens.

    Args:
        token_ids_T: tokens, 0 in the padding.
        labels_T: the token that follows each position, ``IGNORE`` where there is no loss.
        lengths: tokens of each sample, then of the padding if there is any.
        answer_starts: stream position of each sample's first answer token.
        answer_stops: stream position after each sample's last token.
    """

    token_ids_T: Ints
    labels_T: Ints
    lengths: tuple[int, ...]
    answer_starts: tuple[int, ...]
    answer_stops: tuple[int, ...]


def pack_images(
    samples: Sequence[Sample], encoder: str, patch_size: int, align: int
) -> PackedImages | None:
    """Pack all images of an encoder, or return None where there is none.

    Args:
        samples: in assignment order.
        encoder: whose images.
        patch_size: side of a patch in pixels.
        align: the sequence is padded to a multiple of this (tp * merge under sp).
    """
    images = [image for sample in samples for image in sample.images.get(encoder, ())]
    if not images:
        return None
    cut = [_patches(image, patch_size) for image in images]
    lengths = [len(patches) for patches, _, _ in cut]
    padding = -sum(lengths) % align
    if padding:
        zeros = np.zeros(padding, dtype=np.int64)
        cut.append((np.zeros((padding, cut[0][0].shape[1]), np.float32), zeros, zeros))
        lengths.append(padding)
    patches, rows, columns = (np.concatenate(parts) for parts in zip(*cut, strict=True))
    return PackedImages(patches, rows, columns, tuple(lengths))


def _patches(image: NDArray[np.float32], side: int) -> tuple[NDArray[np.float32], Ints, Ints]:
    """Cut an image into patches, column by column: strips then read in writing order."""
    height, width, channels = image.shape
    rows, columns = height // side, width // side
    grid = image.reshape(rows, side, columns, side, channels)
    patches = grid.transpose(2, 0, 1, 3, 4).reshape(rows * columns, side * side * channels)
    return patches, np.tile(np.arange(rows), columns), np.repeat(np.arange(columns), rows)


def pack_text(samples: Sequence[Sample], align: int) -> PackedText | None:
    """Pack the fused sequences, or return None where there is no sample.

    Args:
        samples: in assignment order.
        align: the stream is padded to a multiple of this (tp under sp).
    """
    if not samples:
        return None
    lengths = [len(sample.token_ids_S) for sample in samples]
    padding = -sum(lengths) % align
    token_ids = [*(sample.token_ids_S for sample in samples), np.zeros(padding, np.int64)]
    labels = [*(sample.labels_S for sample in samples), np.full(padding, IGNORE)]
    stops = np.cumsum(lengths)
    starts = [
        int(stop) - length + sample.answer_start
        for sample, stop, length in zip(samples, stops, lengths, strict=True)
    ]
    return PackedText(
        np.concatenate(token_ids),
        np.concatenate(labels),
        tuple(lengths + ([padding] if padding else [])),
        tuple(starts),
        tuple(int(stop) for stop in stops),
    )
