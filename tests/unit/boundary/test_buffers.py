"""Memory of messages: never handed to two users at once, used again, and counted."""

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from disagg_train.boundary.buffers import MessageBuffers

WIDTH = 4
CPU = torch.device("cpu")


def buffers_of(dtype: torch.dtype = torch.float32) -> MessageBuffers:
    return MessageBuffers(WIDTH, dtype, CPU)


def extent(rows_TD: Tensor) -> tuple[int, int]:
    """Return the addresses that a buffer covers."""
    return rows_TD.data_ptr(), rows_TD.data_ptr() + rows_TD.numel() * rows_TD.itemsize


@given(st.lists(st.one_of(st.integers(0, 70), st.just("give back")), max_size=40), st.randoms())
def test_buffers_in_use_never_overlap(actions: list[int | str], random: object) -> None:
    buffers, taken = buffers_of(), []
    for action in actions:
        if isinstance(action, int):
            taken.append(buffers.take(action))
            assert taken[-1].shape == (action, WIDTH)
            assert taken[-1].is_contiguous()
        elif taken:
            buffers.give_back(taken.pop(random.randrange(len(taken))))
        extents = sorted(extent(rows) for rows in taken if len(rows))
        assert all(left[1] <= right[0] for left, right in combinations(extents, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_buffer_has_the_type_that_was_asked_for(dtype: torch.dtype) -> None:
    assert buffers_of(dtype).take(3).dtype == dtype
    assert buffers_of(dtype).take(0).dtype == dtype


@given(st.integers(1, 5000))
def test_a_given_back_buffer_is_taken_again(num_rows: int) -> None:
    buffers = buffers_of()
    first = buffers.take(num_rows)
    address = first.data_ptr()
    buffers.give_back(first)
    assert buffers.take(num_rows).data_ptr() == address


def test_nearly_equal_sizes_share_memory() -> None:
    buffers = buffers_of()
    large = buffers.take(1024)
    address = large.data_ptr()
    buffers.give_back(large)
    smaller = buffers.take(1000)
    assert smaller.data_ptr() == address
    assert len(smaller) == 1000


@given(st.integers(1, 100_000))
def test_at_most_a_quarter_of_a_buffer_is_idle(num_rows: int) -> None:
    buffers = MessageBuffers(1, torch.uint8, CPU)
    buffers.take(num_rows)
    assert num_rows <= buffers.take_peak_bytes() <= max(num_rows * 4 / 3, num_rows)


def test_the_peak_counts_what_is_in_use_at_once() -> None:
    buffers = buffers_of()
    row_bytes = WIDTH * 4
    first, second = buffers.take(8), buffers.take(16)
    buffers.give_back(first)
    third = buffers.take(8)
    assert buffers.take_peak_bytes() == 24 * row_bytes
    buffers.give_back(second)
    assert buffers.take_peak_bytes() == 24 * row_bytes, "a new peak starts with what is in use"
    buffers.give_back(third)
    assert buffers.take_peak_bytes() == 8 * row_bytes
    assert buffers.take_peak_bytes() == 0


def test_the_peak_of_a_loop_that_gives_back_is_one_buffer() -> None:
    buffers = buffers_of()
    for _ in range(50):
        buffers.give_back(buffers.take(32))
    assert buffers.take_peak_bytes() == 32 * WIDTH * 4


def test_a_stranger_or_a_second_giving_back_changes_nothing() -> None:
    buffers = buffers_of()
    mine = buffers.take(8)
    buffers.give_back(torch.zeros(8, WIDTH))
    buffers.give_back(mine)
    buffers.give_back(mine)
    assert buffers.take(8).data_ptr() != buffers.take(8).data_ptr()


def test_a_leaf_that_trained_is_taken_again_as_plain_memory() -> None:
    buffers = buffers_of()
    leaf = buffers.take(8).requires_grad_()
    leaf.sum().backward()
    buffers.give_back(leaf)
    again = buffers.take(8)
    assert not again.requires_grad
    assert again.grad is None
    again.zero_()
