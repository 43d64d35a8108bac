"""Spans and holdings: which tokens sit at which rows."""

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_train.errors import PlanError
from disagg_train.topology.layout import Holding, Layout, Span

Stream = list[int | None]
"""Token at each row; None where a row holds no token of the boundary."""


@st.composite
def token_streams(draw: st.DrawFn) -> tuple[list[Span], Stream]:
    """Draw spans in random token order, with gaps between them, and the rows they mean."""
    counts = draw(st.lists(st.integers(0, 7), max_size=6), label="counts")
    order = draw(st.permutations(range(len(counts))), label="order")
    starts = list(accumulate(counts, initial=0))
    spans, stream = [], list[int | None]()
    for i in order:
        stream += [None] * draw(st.integers(0, 3), label="gap")
        spans.append(Span(starts[i], starts[i + 1], len(stream)))
        stream += range(starts[i], starts[i + 1])
    stream += [None] * draw(st.integers(0, 3), label="tail")
    return spans, stream


@given(token_streams())
def test_a_holding_lists_its_tokens_in_ascending_order(
    drawn: tuple[list[Span], Stream],
) -> None:
    spans, stream = drawn
    holding = Holding.of(spans)
    assert holding.token_ids == sorted(token for token in stream if token is not None)
    assert holding.num_tokens == len(holding.token_ids) == len(holding.rows)
    assert [stream[row] for row in holding.rows] == holding.token_ids


@given(token_streams())
def test_compact_keeps_the_tokens_and_numbers_their_rows_from_0(
    drawn: tuple[list[Span], Stream],
) -> None:
    holding = Holding.of(drawn[0])
    assert holding.compact().token_ids == holding.token_ids
    assert holding.compact().rows == list(range(holding.num_tokens))


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_clip_keeps_exactly_the_tokens_inside_at_their_rows(
    start: int, count: int, low: int, high: int
) -> None:
    span = Span(start, start + count, 100)
    clipped = span.clip(low, high)
    kept = {} if clipped is None else dict(zip(*rows_of_span(clipped), strict=True))
    whole = dict(zip(*rows_of_span(span), strict=True))
    assert kept == {token: row for token, row in whole.items() if low <= token < high}


def rows_of_span(span: Span) -> tuple[range, range]:
    return range(span.start, span.stop), range(span.row, span.row + len(span))


def test_a_holding_refuses_a_token_it_holds_twice() -> None:
    with pytest.raises(PlanError, match="holds token 3 twice"):
        Holding.of([Span(3, 6, 10), Span(0, 4, 0)])


def test_a_layout_refuses_places_without_holdings() -> None:
    with pytest.raises(PlanError, match="2 places for 1 holdings"):
        Layout((0, 1), (Holding(),), ((0,), (1,)))


@pytest.mark.parametrize("replicas", [((0,),), ((0, 1), (1,)), ((0, 2),)])
def test_a_layout_refuses_a_rank_outside_exactly_one_replica_group(
    replicas: tuple[tuple[int, ...], ...],
) -> None:
    with pytest.raises(PlanError, match="must hold every rank exactly once"):
        Layout((0, 1), (Holding(), Holding()), replicas)
