"""Cutting sequences over cp and tp: every position once, zigzag, padding where it must be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_train.topology.layout import Span
from disagg_train.topology.stream import Cut, Stream


def cuts() -> st.SearchStrategy[Cut]:
    return st.builds(Cut, st.integers(1, 4), st.integers(1, 4), st.booleans())


def lengths() -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, 20), max_size=5)


def positions(stream: Stream, cp_rank: int, tp_rank: int) -> list[int]:
    intervals = stream.intervals(cp_rank, tp_rank)
    return [position for start, stop in intervals for position in range(start, stop)]


@given(cuts(), lengths())
def test_every_position_is_on_exactly_one_rank(cut: Cut, sequences: list[int]) -> None:
    stream = cut.stream(sequences)
    ranks = [positions(stream, c, t) for c in range(cut.cp) for t in range(cut.tp)]
    assert sorted(p for rank in ranks for p in rank) == list(range(stream.num_positions))


@given(cuts(), lengths())
def test_every_rank_has_equally_many_rows(cut: Cut, sequences: list[int]) -> None:
    stream = cut.stream(sequences)
    ranks = [positions(stream, c, t) for c in range(cut.cp) for t in range(cut.tp)]
    assert {len(rank) for rank in ranks} == {stream.num_shard_rows}


@given(cuts(), lengths())
def test_each_cp_rank_holds_two_mirrored_chunks_of_every_sequence(
    cut: Cut, sequences: list[int]
) -> None:
    stream = cut.stream(sequences)
    for cp_rank in range(cut.cp):
        held = {p for start, stop in stream.context_intervals(cp_rank) for p in range(start, stop)}
        for first, length in zip(stream.starts, stream.parts, strict=True):
            chunk = length // cut.chunks
            mine = {cp_rank, 2 * cut.cp - 1 - cp_rank} if cut.cp > 1 else {0}
            expected = {first + p for p in range(length) if chunk and p // chunk in mine}
            assert held & set(range(first, first + length)) == expected


@given(cuts(), st.lists(lengths(), min_size=1, max_size=4))
def test_equal_lanes_have_equally_many_rows(cut: Cut, lanes: list[list[int]]) -> None:
    streams = cut.streams(lanes, equal=True)
    assert len({stream.num_rows for stream in streams}) == 1
    assert [stream.lengths for stream in streams] == [tuple(lane) for lane in lanes]


@given(lengths())
def test_a_single_rank_pads_no_packed_sequence(sequences: list[int]) -> None:
    stream = Cut().stream(sequences)
    assert (stream.parts, stream.tail) == (tuple(sequences), 0)


@given(cuts(), lengths())
def test_packed_sequences_are_padded_for_cp_alone(cut: Cut, sequences: list[int]) -> None:
    stream = Cut(cut.cp, cut.tp).stream(sequences)
    for length, room in zip(sequences, stream.padded, strict=True):
        assert length <= room < length + cut.chunks and room % cut.chunks == 0


@pytest.mark.parametrize(
    ("cut", "length"),
    [
        (Cut(packed=False), 7),
        (Cut(tp=4, packed=False), 8),
        (Cut(cp=2, packed=False), 8),
        (Cut(cp=2, tp=3, packed=False), 12),
    ],
)
def test_padded_sequences_take_one_length_that_divides(cut: Cut, length: int) -> None:
    assert cut.stream([3, 7, 5]).padded == (length,) * 3


def test_padded_sequences_are_cut_over_tp_one_by_one() -> None:
    stream = Cut(tp=2, packed=False).stream([4, 3])
    assert [stream.intervals(0, t) for t in (0, 1)] == [[(0, 2), (4, 6)], [(2, 4), (6, 8)]]


def test_a_packed_stream_is_cut_over_tp_as_one() -> None:
    stream = Cut(tp=2).stream([5, 2])
    assert [stream.intervals(0, t) for t in (0, 1)] == [[(0, 4)], [(4, 5), (5, 7), (7, 8)]]


def test_cp_8_gives_rank_r_the_chunks_r_and_15_minus_r() -> None:
    stream = Cut(cp=8).stream([32])
    assert [stream.context_intervals(r) for r in (0, 3, 7)] == [
        [(0, 2), (30, 32)],
        [(6, 8), (24, 26)],
        [(14, 16), (16, 18)],
    ]


@given(cuts(), lengths())
def test_a_rank_holds_the_tokens_of_its_positions_at_its_rows(
    cut: Cut, sequences: list[int]
) -> None:
    stream = cut.stream(sequences)
    spans, token = [], 0
    for start, length in zip(stream.starts, sequences, strict=False):
        spans.append(Span(token, token + length, start))
        token += length
    token_at = {s.row + i: s.start + i for s in spans for i in range(len(s))}
    for cp_rank in range(cut.cp):
        for tp_rank in range(cut.tp):
            held = stream.holding(spans, cp_rank, tp_rank)
            at_row = dict(zip(held.rows, held.token_ids, strict=True))
            expected = {
                row: token_at[p]
                for row, p in enumerate(positions(stream, cp_rank, tp_rank))
                if p in token_at
            }
            assert at_row == expected
