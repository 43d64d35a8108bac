"""Packing lays samples where their stream says; padding holds nothing."""

import numpy as np
import pytest

from disagg_train.data.collate import context_positions, pack_inputs, pack_text
from disagg_train.data.source import IGNORE, Sample
from disagg_train.data.tokens import InputTokens
from disagg_train.errors import DataError
from disagg_train.topology.stream import Cut


def _sample(length: int) -> Sample:
    labels = np.full(length, IGNORE)
    labels[-2] = 7
    return Sample(0, np.arange(length), labels, answer_start=length - 1)


def _input(num_tokens: int, first: float = 1.0) -> InputTokens:
    values = first + np.arange(num_tokens * 2, dtype=np.float32).reshape(num_tokens, 2)
    return InputTokens(values, np.arange(num_tokens), np.arange(num_tokens) + 7, (num_tokens, 1))


@pytest.mark.parametrize(
    ("cut", "starts", "length"),
    [(Cut(), (0, 4), 6), (Cut(tp=4), (0, 4), 8), (Cut(cp=2), (0, 8), 16)],
)
def test_inputs_start_where_the_stream_says_before_they_are_merged(
    cut: Cut, starts: tuple[int, int], length: int
) -> None:
    packed = pack_inputs([_input(4), _input(2, 9.0)], 2, merge=2, stream=cut.stream([2, 1]))
    assert packed.values_PX.shape == (length, 2)
    assert [packed.values_PX[start, 0] for start in starts] == [1.0, 9.0]
    assert packed.grids == ((4, 1), (2, 1))
    for number, start, count in ((0, starts[0], 4), (1, starts[1], 2)):
        at = slice(start, start + count)
        assert packed.rows_P[at].tolist() == list(range(count))
        assert packed.columns_P[at].tolist() == list(range(7, 7 + count))
        assert packed.inputs_P[at].tolist() == [number] * count


def test_padding_of_inputs_is_zero() -> None:
    packed = pack_inputs([_input(3)], 2, merge=1, stream=Cut(tp=4).stream([3]))
    for each in (packed.values_PX, packed.rows_P, packed.columns_P, packed.inputs_P):
        assert not each[3:].any()


@pytest.mark.parametrize(("tokens", "values"), [(3, 2), (5, 2), (4, 3)])
def test_an_input_that_its_index_did_not_promise_is_refused(tokens: int, values: int) -> None:
    with pytest.raises(DataError, match=f"makes {tokens} tokens of 2 values"):
        pack_inputs([_input(tokens)], values, merge=1, stream=Cut().stream([4]))


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
