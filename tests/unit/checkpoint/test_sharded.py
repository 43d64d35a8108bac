"""Chunks come back as they were, in any boxes, and only whole tensors are written."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disagg_train.checkpoint.regions import range_boxes
from disagg_train.checkpoint.sharded import (
    CheckpointSource,
    Chunk,
    ModuleState,
    save_module,
    storage_reader,
)
from disagg_train.errors import CheckpointError

_NUMBERS = count()


def _ranges(full: torch.Tensor, cuts: Sequence[int]) -> list[Chunk]:
    ends = [0, *sorted(cuts), full.numel()]
    boxes = [
        box
        for start, end in zip(ends, ends[1:], strict=False)
        for box in range_boxes(full.shape, start, end)
    ]
    return [Chunk("m.w", tuple(full.shape), box.offsets, _view(full, box)) for box in boxes]


def _view(full: torch.Tensor, box: Any) -> torch.Tensor:
    for dim, (offset, size) in enumerate(zip(box.offsets, box.sizes, strict=True)):
        full = full.narrow(dim, offset, size)
    return full


@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 4), max_size=3),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64]),
    st.data(),
)
def test_any_ranges_are_read_back_as_any_others(
    shape: list[int], dtype: torch.dtype, data: st.DataObject
) -> None:
    full = torch.arange(torch.Size(shape).numel()).view(shape).to(dtype)
    cuts = st.lists(st.integers(0, full.numel()), max_size=3)
    folder = f"memory://chunks/{next(_NUMBERS)}"
    save_module(folder, _ranges(full, data.draw(cuts)))
    state = ModuleState(storage_reader(folder), folder)
    found = torch.zeros(shape, dtype=dtype)
    state.fill(_ranges(found, data.draw(cuts)))
    assert torch.equal(found, full)
    assert torch.equal(state.read("m.w"), full)
    assert state.shape("m.w") == tuple(shape)


def test_what_is_read_is_rounded_to_the_type_that_it_is_read_into(tmp_path: Path) -> None:
    values = torch.randn(4, 5)
    save_module(str(tmp_path / "m"), [Chunk("m.w", (4, 5), (0, 0), values)])
    rounded = torch.zeros(4, 5, dtype=torch.bfloat16)
    source = CheckpointSource(str(tmp_path), 1)
    ModuleState(source.reader("m"), "m").fill([Chunk("m.w", (4, 5), (0, 0), rounded)])
    assert torch.equal(rounded, values.bfloat16())


_FULL = torch.arange(6.0).view(2, 3)


@pytest.mark.parametrize(
    ("chunks", "complaint"),
    [
        ([Chunk("m.w", (2, 3), (0, 0), _FULL[:1])], "ranks write 3 of its 6 elements"),
        (
            [Chunk("m.w", (2, 3), (0, 0), _FULL[:1]), Chunk("m.w", (2, 3), (0, 1), _FULL[:, 1:2])],
            "overlapping",
        ),
        ([Chunk("m.w", (2, 3), (1, 0), _FULL)], "out of bounds"),
    ],
    ids=["a hole", "an overlap", "outside"],
)
def test_chunks_that_do_not_tile_a_tensor_are_refused(
    tmp_path: Path, chunks: list[Chunk], complaint: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"cannot write .*m: .*{complaint}"):
        save_module(str(tmp_path / "m"), chunks)


def test_what_is_not_there_or_has_another_shape_is_named(tmp_path: Path) -> None:
    save_module(str(tmp_path / "m"), [Chunk("m.w", (2, 3), (0, 0), _FULL)])
    state = ModuleState(storage_reader(str(tmp_path / "m")), "the state of m")
    assert "m.w" in state and "m.v" not in state
    with pytest.raises(CheckpointError, match=r"the state of m has no m\.v"):
        state.fill([Chunk("m.v", (2, 3), (0, 0), torch.zeros(2, 3))])
    with pytest.raises(CheckpointError, match=r"m\.w is \[2, 3\] there, but \[3, 2\] in this job"):
        state.fill([Chunk("m.w", (3, 2), (0, 0), torch.zeros(3, 2))])


def test_a_folder_without_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read nothing"):
        ModuleState(storage_reader(str(tmp_path / "m")), "nothing")
