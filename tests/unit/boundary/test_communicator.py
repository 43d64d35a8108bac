"""Rows really cross between gloo ranks, as the exchanges say."""

import pytest
import torch
from torch import Tensor
from torch.distributed import TCPStore

from disagg_train.boundary.communicator import Communicator
from disagg_train.boundary.gloo import GlooGroup, GlooTransport
from disagg_train.boundary.layouts import Side
from disagg_train.boundary.step_exchanges import Boundary, step_exchanges
from disagg_train.planner.balance import in_order
from disagg_train.planner.step_plan import SampleSize, Slot, StepPlan
from disagg_train.topology.grid import Grid
from tests.unit.boundary.gloo_ranks import join, on_each_rank

_WIDTH = 3
_TOKENS = [3, 0, 5, 7, 2]


def _plan(source_dp: int, destination_dp: int, microbatches: int) -> StepPlan:
    sizes = [
        SampleSize(i, 4 + n, 1, {"vision": (Slot(2, n),)} if n else {})
        for i, n in enumerate(_TOKENS)
    ]
    assignment = {
        "vision": in_order(len(sizes), microbatches, source_dp),
        "language": in_order(len(sizes), microbatches, destination_dp),
    }
    return StepPlan(0, tuple(sizes), assignment)


def _boundary(source: Grid, destination: Grid, sp: bool, shared: bool) -> Boundary:
    first = 0 if shared else source.size
    return Boundary(
        "vision->language",
        Side("vision", source, tuple(range(source.size))),
        Side("language", destination, tuple(range(first, first + destination.size)), sp),
    )


def _replicas(name: str, store: TCPStore, side: Side, place: int) -> GlooGroup | None:
    for group in side.replicas():
        places = tuple(side.places[i] for i in group)
        if place in places and len(places) > 1:
            return join(f"{name}/{places}", store, places, place)
    return None


def _expected_forward(plan: StepPlan, boundary: Boundary, microbatch: int, place: int) -> Tensor:
    layout = boundary.layouts(plan, microbatch).compact
    ids = layout.holdings[layout.places.index(place)].token_ids
    return torch.tensor(ids, dtype=torch.float32)[:, None].expand(-1, _WIDTH)


def _cross(plan: StepPlan, boundary: Boundary, place: int, store: TCPStore) -> list[bool]:
    """Send token ids forward; return per microbatch whether they came as expected."""
    transport = GlooTransport(join("wire", store, boundary.places, place))
    replicas = _replicas("replicas", store, boundary.destination, place)
    communicator = Communicator("forward", transport, _WIDTH, torch.device("cpu"), replicas)
    right = []
    for microbatch, mine in enumerate(step_exchanges(plan, boundary, place)):
        source = boundary.layouts(plan, microbatch).source
        if place in source.places:
            holding = source.holdings[source.places.index(place)]
            rows = torch.zeros(holding.num_tokens, _WIDTH)
            ids = torch.tensor(holding.token_ids, dtype=torch.float32)
            rows[holding.rows] = ids[:, None].expand(-1, _WIDTH)
            communicator.launch(microbatch, mine.forward, rows)
        else:
            communicator.post(microbatch, mine.forward)
        if place in boundary.destination.places:
            received = communicator.finish(microbatch)
            expected = _expected_forward(plan, boundary, microbatch, place)
            right.append(torch.equal(received, expected))
    communicator.drain()
    communicator.close()
    return right


@pytest.mark.parametrize("shared", [False, True], ids=["disjoint", "colocated"])
@pytest.mark.parametrize(
    ("source", "destination", "sp"),
    [
        (Grid(dp=2), Grid(tp=2), True),
        (Grid(tp=2), Grid(tp=2), False),
        (Grid(dp=2), Grid(tp=2), False),
        (Grid(tp=2), Grid(dp=2), False),
    ],
)
def test_rows_arrive_where_the_layout_says(
    source: Grid, destination: Grid, sp: bool, shared: bool
) -> None:
    plan = _plan(source.dp, destination.dp, microbatches=2)
    boundary = _boundary(source, destination, sp, shared)
    arrived = on_each_rank(boundary.places, lambda p, store: _cross(plan, boundary, p, store))
    assert all(all(right) for right in arrived)
    assert sum(len(right) for right in arrived) == 2 * destination.size
