"""Packing lays samples where their stream says; padding holds nothing."""

import numpy as np
import pytest

from disagg_train.data.collate import context_positions, pack_images, pack_text
from disagg_train.data.source import IGNORE, Sample
from disagg_train.topology.stream import Cut


def _sample(length: int) -> Sample:
    labels = np.full(length, IGNORE)
    labels[-2] = 7
    return Sample(0, np.arange(length), labels, answer_start=length - 1)


def _image(height: int, width: int) -> np.ndarray:
    return np.arange(height * width, dtype=np.float32).reshape(height, width, 1)


def test_patches_are_cut_column_by_column() -> None:
    packed = pack_images([_image(4, 6)], patch_size=2, merge=1, stream=Cut().stream([6]))
    assert packed.rows_P.tolist() == [0, 1, 0, 1, 0, 1]
    assert packed.columns_P.tolist() == [0, 0, 1, 1, 2, 2]
    assert packed.patches_PX[1].tolist() == [12, 13, 18, 19]
    assert packed.patches_PX[2].tolist() == [2, 3, 8, 9]


@pytest.mark.parametrize(
    ("cut", "starts", "length"),
    [(Cut(), (0, 4), 6), (Cut(tp=4), (0, 4), 8), (Cut(cp=2), (0, 8), 16)],
)
def test_images_start_where_the_stream_says_in_patches(
    cut: Cut, starts: tuple[int, int], length: int
) -> None:
    packed = pack_images([_image(4, 4), _image(2, 4)], 2, merge=2, stream=cut.stream([2, 1]))
    assert len(packed.rows_P) == length
    assert [packed.patches_PX[start, 1] for start in starts] == [1.0, 1.0]


def test_merged_patches_stay_on_one_cp_rank() -> None:
    positions = context_positions(Cut(cp=2).stream([5, 3]), unit=2)
    for rank in positions:
        pairs = rank.reshape(-1, 2)
        assert (pairs[:, 0] % 2 == 0).all() and (pairs[:, 1] == pairs[:, 0] + 1).all()


def test_text_padding_carries_no_loss() -> None:
    packed = pack_text([_sample(3), _sample(4)], Cut(tp=4).stream([3, 4]))
    assert packed.token_ids_T.tolist() == [0, 1, 2, 0, 1, 2, 3, 0]
    assert packed.labels_T.tolist() == [-1, 7, -1, -1, -1, 7, -1, -1]
    assert packed.answers == ((2, 3), (6, 7))


def test_padded_text_starts_every_sample_on_a_row_of_its_own() -> None:
    packed = pack_text([_sample(3), _sample(4)], Cut(packed=False).stream([3, 4]))
    assert packed.token_ids_T.reshape(2, 4).tolist() == [[0, 1, 2, 0], [0, 1, 2, 3]]


def test_labels_follow_their_tokens_to_the_cp_rank() -> None:
    stream = Cut(cp=2).stream([8])
    packed = pack_text([_sample(8)], stream)
    first, second = context_positions(stream)
    assert packed.labels_T[first].tolist() == [-1, -1, 7, -1]
    assert packed.labels_T[second].tolist() == [-1] * 4


def test_an_empty_stream_packs_to_nothing() -> None:
    packed = pack_text([], Cut().stream([]))
    assert len(packed.token_ids_T) == 0
    assert context_positions(Cut(cp=2).stream([])).shape == (2, 0)
