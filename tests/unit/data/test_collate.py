"""Packing pads no sample to another's size, only the stream's end."""

import numpy as np
import pytest

from disagg_train.data.collate import pack_images, pack_text
from disagg_train.data.source import IGNORE, Sample


def _sample(length: int, *images: tuple[int, int]) -> Sample:
    ids = np.arange(length)
    labels = np.full(length, IGNORE)
    labels[-2] = 7
    pixels = [np.arange(h * w, dtype=np.float32).reshape(h, w, 1) for h, w in images]
    return Sample(0, ids, labels, {"vision": pixels} if pixels else {}, answer_start=length - 1)


def test_patches_are_cut_column_by_column() -> None:
    packed = pack_images([_sample(3, (4, 6))], "vision", patch_size=2, align=1)
    assert packed is not None
    assert packed.rows_P.tolist() == [0, 1, 0, 1, 0, 1]
    assert packed.columns_P.tolist() == [0, 0, 1, 1, 2, 2]
    assert packed.patches_PX[1].tolist() == [12, 13, 18, 19]
    assert packed.patches_PX[2].tolist() == [2, 3, 8, 9]


@pytest.mark.parametrize(("align", "lengths"), [(1, (4, 2)), (4, (4, 2, 2)), (3, (4, 2))])
def test_only_the_end_is_padded(align: int, lengths: tuple[int, ...]) -> None:
    samples = [_sample(3, (4, 4)), _sample(3), _sample(3, (2, 4))]
    packed = pack_images(samples, "vision", patch_size=2, align=align)
    assert packed is not None
    assert packed.lengths == lengths
    assert len(packed.patches_PX) == len(packed.rows_P) == sum(lengths)


def test_text_padding_carries_no_loss() -> None:
    packed = pack_text([_sample(3), _sample(4)], align=4)
    assert packed is not None
    assert packed.lengths == (3, 4, 1)
    assert packed.labels_T.tolist() == [-1, 7, -1, -1, -1, 7, -1, -1]
    assert (packed.answer_starts, packed.answer_stops) == ((2, 6), (3, 7))


def test_nothing_packs_to_nothing() -> None:
    assert pack_text([], align=2) is None
    assert pack_images([_sample(3)], "vision", 2, 1) is None
