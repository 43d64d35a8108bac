"""The cases whose answers the tests of Megatron's released boundary fix.

Degrees are (tp, dp) unless said. The oracle: destination replica d holds the global batch's
d-th share, and each source replica gets the gradient of its own share.
"""

from collections.abc import Iterable

import numpy as np
import pytest

from disagg_train.boundary.layouts import Side, destination_layout
from disagg_train.data.collate import context_positions, pack_text
from disagg_train.data.source import IGNORE, Sample
from disagg_train.planner.step_plan import SampleSize, Slot, StepPlan
from disagg_train.topology.grid import Grid
from disagg_train.topology.layout import Layout
from tests.unit.boundary.player import Buffers, Exchanges, play
from tests.unit.boundary.strategies import ENCODER, LANGUAGE, BoundaryCase, case_in_order
from tests.unit.boundary.views import destination_streams, source_layout

FAN_IN, FAN_OUT = (Grid(tp=2, dp=4), Grid(tp=4, dp=2)), (Grid(tp=4, dp=2), Grid(tp=2, dp=4))
MEGATRON_ORDER = ("tp", "cp", "pp", "dp")


def share(tokens: Iterable[int], parts: int, part: int) -> list[int]:
    """Return the part-th of equal, contiguous shares."""
    whole = list(tokens)
    return whole[len(whole) * part // parts : len(whole) * (part + 1) // parts]


def carried_forward(case: BoundaryCase) -> Buffers:
    """Send token ids; every row of these sources is a token."""
    return play(case.forward, {place: list(stream) for place, stream in case.held.items()})


def carried_back(case: BoundaryCase) -> Buffers:
    """Send token ids as gradients."""
    return play(case.backward, {place: sorted(case.needed_by(place)) for place in case.needed})


def dp_ranks(side: Side) -> dict[int, int]:
    return {place: side.grid.coordinates(rank)["dp"] for rank, place in enumerate(side.places)}


@pytest.mark.parametrize("first_destination", [0, 8], ids=["colocated", "disjoint"])
@pytest.mark.parametrize(("source", "destination"), [FAN_IN, FAN_OUT], ids=["in", "out"])
def test_replica_d_holds_share_d_and_each_source_gets_its_own_shares_gradient(
    source: Grid, destination: Grid, first_destination: int
) -> None:
    case = case_in_order([3] * 8, source, destination, first_destination=first_destination)
    there, back = carried_forward(case), carried_back(case)
    for place, dp_rank in dp_ranks(case.destination).items():
        assert there[place] == share(range(24), destination.dp, dp_rank)
    for place, dp_rank in dp_ranks(case.source).items():
        assert back[place] == share(range(24), source.dp, dp_rank)


def exchanging(exchanges: Exchanges) -> list[set[int]]:
    """Return the sets of processes that rows move among, directly or through others."""
    sets: list[set[int]] = []
    for place, e in exchanges.items():
        joined = {place} | {peer for peer, _ in e.sends + e.receives + e.hands_on + e.handed}
        for other in [other for other in sets if other & joined]:
            sets.remove(other)
            joined |= other
        if len(joined) > 1:
            sets.append(joined)
    return sorted(sets, key=min)


@pytest.mark.parametrize(("source", "destination"), [FAN_IN, FAN_OUT], ids=["in", "out"])
def test_colocated_8_ranks_move_as_much_and_as_near_as_megatrons_exchange_groups(
    source: Grid, destination: Grid
) -> None:
    # Megatron all-gathers over the siblings with equal tp remainder, forward when fanning in
    # and backward when fanning out; the other direction only narrows. Our siblings' tp ranks
    # share the same work: each hands half a share to two ranks instead of a whole share to
    # one. So two of Megatron's groups are one of our sets, and a rank is handed as many rows.
    megatrons = [{0, 2}, {1, 3}, {4, 6}, {5, 7}]
    case = case_in_order([3] * 8, source, destination)
    gathers, narrows = case.forward, case.backward
    if source.dp < destination.dp:
        gathers, narrows = narrows, gathers
    assert exchanging(narrows) == []
    ours = exchanging(gathers)
    assert ours == [{0, 1, 2, 3}, {4, 5, 6, 7}]
    assert all(any(group <= one for one in ours) for group in megatrons)
    for exchange in gathers.values():
        assert sum(len(rows) for _, rows in exchange.handed) == 24 // 4
        assert not exchange.sends and not exchange.receives


def test_colocated_2_2_to_1_4_on_ranks_4_to_7_has_the_known_coordinates() -> None:
    source, destination = Grid(tp=2, dp=2), Grid(tp=1, dp=4)
    case = case_in_order([2] * 4, source, destination, first_source=4, first_destination=4)
    at = {place: source.coordinates(place - 4) for place in case.places}
    assert {p: (c["dp"], c["tp"]) for p, c in at.items()} == {
        4: (0, 0), 5: (0, 1), 6: (1, 0), 7: (1, 1)
    }  # fmt: skip
    assert dp_ranks(case.destination) == {4: 0, 5: 1, 6: 2, 7: 3}
    assert carried_forward(case) == {4: [0, 1], 5: [2, 3], 6: [4, 5], 7: [6, 7]}
    assert carried_back(case) == {
        4: [*range(4)],
        5: [*range(4)],
        6: [*range(4, 8)],
        7: [*range(4, 8)],
    }


@pytest.mark.parametrize("sizes", [[3, 3], [1, 4], [0, 2]])
def test_fan_out_backward_concatenates_the_slots_gradients(sizes: list[int]) -> None:
    case = case_in_order(sizes, Grid(tp=2), Grid(dp=2))
    gradients = {slot: [slot + 1] * size for slot, size in enumerate(sizes)}
    received = play(case.backward, gradients)
    assert received[0] == received[1] == [1] * sizes[0] + [2] * sizes[1]


@pytest.mark.parametrize(
    ("order", "last_stage", "first_stage"),
    [
        (MEGATRON_ORDER, [[2, 3], [6, 7]], [[8, 9], [12, 13]]),
        (Grid().order, [[4, 5], [6, 7]], [[8, 9], [10, 11]]),
    ],
    ids=["megatron's order", "our order"],
)
def test_boundary_ranks_of_tp2_pp2_dp2_to_the_same(
    order: tuple[str, ...], last_stage: list[list[int]], first_stage: list[list[int]]
) -> None:
    grid = Grid(tp=2, pp=2, dp=2, order=order)
    case = case_in_order([2, 2], grid, grid, first_destination=8)
    assert replica_places(case.layouts.source) == last_stage
    assert replica_places(case.layouts.destination) == first_stage
    senders, receivers = set(sum(last_stage, [])), set(sum(first_stage, []))
    assert {place for place, e in case.forward.items() if e.sends} == senders
    assert {place for place, e in case.forward.items() if e.receives} == receivers


def replica_places(layout: Layout) -> list[list[int]]:
    return sorted([layout.places[i] for i in group] for group in layout.replicas)


@pytest.mark.parametrize(("source_dp", "destination_dp"), [(4, 1), (1, 4), (3, 2), (2, 3)])
def test_577_rows_per_sample_travel_once_between_any_two_disjoint_degrees(
    source_dp: int, destination_dp: int
) -> None:
    source, destination = Grid(dp=source_dp), Grid(dp=destination_dp)
    case = case_in_order([577] * 4, source, destination, first_destination=source_dp)
    for exchanges in (case.forward, case.backward):
        assert sum(e.num_sent for e in exchanges.values()) == 2308


def test_577_rows_on_each_of_dp4_are_2308_rows_on_dp1_and_the_reverse() -> None:
    fan_in = case_in_order([577] * 4, Grid(dp=4), Grid(), first_destination=4)
    assert num_tokens(fan_in.layouts.source) == [577] * 4
    assert num_tokens(fan_in.layouts.destination) == [2308]
    fan_out = case_in_order([577] * 4, Grid(), Grid(dp=4), first_destination=1)
    assert num_tokens(fan_out.layouts.source) == [2308]
    assert num_tokens(fan_out.layouts.destination) == [577] * 4


def num_tokens(layout: Layout) -> list[int]:
    return [holding.num_tokens for holding in layout.holdings]


def test_sizes_0_3_1_2_over_two_dp_replicas_are_3_and_3_rows() -> None:
    case = case_in_order([0, 3, 1, 2], Grid(dp=2), Grid(dp=2), first_destination=2)
    assert num_tokens(case.layouts.source) == [3, 3]
    assert num_tokens(case.layouts.destination) == [3, 3]


def test_sizes_0_3_1_2_sent_by_two_tp_replicas_are_3_and_3_rows() -> None:
    case = case_in_order([0, 3, 1, 2], Grid(tp=2), Grid(), first_destination=2)
    assert [case.forward[place].num_sent for place in (0, 1)] == [3, 3]


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_fused_sequence_over_cp8_rank_r_holds_chunks_r_and_15_minus_r_and_labels_follow(
    packed: bool,
) -> None:
    sample = SampleSize(0, 48, 48, {ENCODER: (Slot(0, 48),)})
    plan = StepPlan(0, (sample,), dict.fromkeys((ENCODER, LANGUAGE), (((0,),),)))
    side = Side(LANGUAGE, Grid(cp=8), tuple(range(8)), packed=packed)
    ids = np.arange(48)
    labels = np.append(ids[1:], IGNORE)  # shifted before any cut: a chunk's last label, too
    stream = destination_streams(plan, side, 0)[0]
    text = pack_text([Sample(0, ids, labels)], stream)
    for r, holding in enumerate(destination_layout(plan, ENCODER, side, 0).holdings):
        chunks = [*range(3 * r, 3 * r + 3), *range(3 * (15 - r), 3 * (15 - r) + 3)]
        assert holding.token_ids == chunks
        assert holding.rows == [*range(6)]
        positions = context_positions(stream)[r]
        assert text.token_ids_T[positions].tolist() == chunks
        assert text.labels_T[positions].tolist() == [labels[position] for position in chunks]


def test_an_encoders_image_over_cp2_is_cut_the_same_way() -> None:
    plan = StepPlan(0, (SampleSize(0, 8, 1, {ENCODER: (Slot(0, 8),)}),), {ENCODER: (((0,),),)})
    layout = source_layout(plan, Side(ENCODER, Grid(cp=2), (0, 1)), [0])
    assert [holding.token_ids for holding in layout.holdings] == [[0, 1, 6, 7], [2, 3, 4, 5]]
