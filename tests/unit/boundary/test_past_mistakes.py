"""Mistakes that others made at such a boundary, each with the test that would have told.

Those of losses, loss scalers, checkpoints and random states are tested where those live.
"""

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.distributed import TCPStore

from disagg_train.boundary.communicator import Communicator
from disagg_train.boundary.exchange import Exchange
from disagg_train.boundary.gloo import GlooTransport
from disagg_train.boundary.layouts import Side
from disagg_train.boundary.step_exchanges import Boundary, RankExchanges
from disagg_train.planner.in_order import in_order
from disagg_train.planner.step_plan import SampleSize, Slot, StepPlan
from disagg_train.topology.grid import Grid
from tests.unit.boundary.gloo_ranks import join, on_each_rank
from tests.unit.boundary.player import play
from tests.unit.boundary.strategies import (
    ENCODER,
    LANGUAGE,
    BoundaryCase,
    boundary_cases,
    case_in_order,
)

_WIDTH = 2
_CPU = torch.device("cpu")


class OneRank:
    """One process's communicator in one direction, over all of a step's microbatches."""

    def __init__(
        self, case: BoundaryCase, replicas: list[tuple[int, ...]], place: int, store: TCPStore
    ) -> None:
        wire = GlooTransport(join("wire", store, case.places, place))
        mine = next((group for group in replicas if place in group and len(group) > 1), None)
        gather = GlooTransport(join(f"replicas/{mine}", store, mine, place)) if mine else None
        self.communicator = Communicator("under test", wire, _WIDTH, _CPU, gather)

    def carry(self, microbatch: int, exchange: Exchange, rows: list[float] | None) -> list[float]:
        """Take part in one exchange; return the first value of each filled row."""
        if rows is None:
            self.communicator.post(microbatch, exchange)
        else:
            rows_TD = torch.tensor(rows, dtype=torch.float32)[:, None].expand(-1, _WIDTH)
            self.communicator.launch(microbatch, exchange, rows_TD.contiguous())
        return first_column(self.communicator.finish(microbatch))

    def close(self) -> None:
        self.communicator.drain()
        self.communicator.close()


def first_column(rows_TD: Tensor) -> list[float]:
    assert rows_TD.shape[1] == _WIDTH
    return rows_TD[:, 0].tolist()


RATIOS = [(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (4, 1), (1, 4)]
"""dp of the encoder and of the language module."""


@given(boundary_cases())
def test_a_gradient_of_one_stays_one_whatever_the_dp_ratio(case: BoundaryCase) -> None:
    ones = {place: [1.0] * len(case.needed_by(place)) for place in case.needed}
    for place, gradients in play(case.backward, ones).items():
        tokens = case.held.get(place, [])
        assert gradients == [1.0 if token in case.payload else None for token in tokens]


@pytest.mark.parametrize("shared", [True, False], ids=["colocated", "disjoint"])
@pytest.mark.parametrize(("source_dp", "destination_dp"), RATIOS)
def test_the_wire_does_not_scale_gradients_by_the_dp_ratio(
    source_dp: int, destination_dp: int, shared: bool
) -> None:
    source, destination = Grid(tp=2, dp=source_dp), Grid(dp=destination_dp)
    first = 0 if shared else source.size
    case = case_in_order([3, 1, 0, 2, 4], source, destination, first_destination=first)

    def gradients_at(place: int, store: TCPStore) -> list[float]:
        rank = OneRank(case, case.senders, place, store)
        rows = [1.0] * len(case.needed_by(place)) if place in case.needed else None
        found = rank.carry(0, case.backward[place], rows)
        rank.close()
        return found

    received = dict(zip(case.places, on_each_rank(case.places, gradients_at), strict=True))
    for place, stream in case.held.items():
        assert received[place] == [1.0] * len(stream)
    one_of_each = [group[0] for group in case.senders]
    assert sum(sum(received[place]) for place in one_of_each) == 10.0


IMAGES = [[5, 1], [], [9], [2, 2, 3], [1], [0, 4]]
"""Tokens of each image of each sample."""


def uneven_plan(source_dp: int, destination_dp: int) -> StepPlan:
    """Return samples of several images of unlike sizes, a text token before each and after."""
    samples = []
    for i, images in enumerate(IMAGES):
        slots = [Slot(1 + j + sum(images[:j]), count) for j, count in enumerate(images)]
        length = sum(images) + len(images) + 1
        samples.append(SampleSize(i, length, 1, {ENCODER: tuple(slots)} if slots else {}))
    lanes = {ENCODER: source_dp, LANGUAGE: destination_dp}
    assignment = {module: in_order(len(IMAGES), 2, dp) for module, dp in lanes.items()}
    return StepPlan(0, tuple(samples), assignment)


def embeddings(samples: tuple[int, ...]) -> list[str]:
    """Name the rows that the encoder computes: sample, image, token."""
    return [
        f"{i}.{j}.{n}" for i in samples for j, count in enumerate(IMAGES[i]) for n in range(count)
    ]


def fused(samples: tuple[int, ...]) -> list[str]:
    """Write the fused sequences down: each image's tokens after a text token."""
    stream = []
    for i in samples:
        for j, count in enumerate(IMAGES[i]):
            stream += ["text"] + [f"{i}.{j}.{n}" for n in range(count)]
        stream.append("text")
    return stream


@pytest.mark.parametrize("shared", [True, False], ids=["colocated", "disjoint"])
@pytest.mark.parametrize(("source_dp", "destination_dp"), [(1, 1), *RATIOS])
def test_images_of_unlike_sizes_land_on_their_own_placeholders(
    source_dp: int, destination_dp: int, shared: bool
) -> None:
    plan = uneven_plan(source_dp, destination_dp)
    sources = tuple(range(source_dp))
    destinations = tuple(range(destination_dp)) if shared else tuple(range(8, 8 + destination_dp))
    boundary = Boundary(
        "vision->language",
        Side(ENCODER, Grid(dp=source_dp), sources),
        Side(LANGUAGE, Grid(dp=destination_dp), destinations),
    )
    steps = {place: boundary.exchanges(plan, place) for place in {*sources, *destinations}}
    for microbatch in range(2):
        sending = {p: embeddings(plan.held(ENCODER, microbatch, d)) for d, p in enumerate(sources)}
        filled = play({p: step[microbatch].forward for p, step in steps.items()}, sending)
        for dp_rank, place in enumerate(destinations):
            expected = fused(plan.held(LANGUAGE, microbatch, dp_rank))
            stream = ["text"] * len(expected)
            for row, value in zip(steps[place][microbatch].stream_rows, filled[place], strict=True):
                stream[row] = value
            assert stream == expected


def step_of(case: BoundaryCase) -> Mapping[int, tuple[RankExchanges, ...]]:
    boundary = Boundary("vision->language", case.source, case.destination)
    return {place: boundary.exchanges(case.plan, place) for place in case.places}


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        ([4, 0, 0, 0], "one encoder lane and one language lane have nothing, then no one has"),
        ([0, 0, 5, 3], "no rank has anything before the second microbatch"),
        ([0, 0, 0, 7], "the first lanes stay out of the boundary all along"),
        ([0, 0, 0, 0], "text only"),
    ],
)
@pytest.mark.parametrize("tp", [1, 2])
def test_ranks_with_nothing_to_send_stay_out_and_the_others_still_finish(
    sizes: list[int], why: str, tp: int
) -> None:
    source, destination = Grid(dp=2), Grid(tp=tp, dp=2)
    case = case_in_order(sizes, source, destination, first_destination=2, num_microbatches=2)
    steps = step_of(case)
    offsets = [sum(sizes[:i]) for i in range(5)]

    def tokens(module: str, microbatch: int, dp_rank: int) -> list[float]:
        lane = case.plan.held(module, microbatch, dp_rank)
        return [float(t) for i in lane for t in range(offsets[i], offsets[i + 1])]

    def arrived_at(place: int, store: TCPStore) -> list[list[float]]:
        rank = OneRank(case, case.receivers, place, store)
        rows = [tokens(ENCODER, m, place) if place < 2 else None for m in range(2)]
        found = [rank.carry(m, steps[place][m].forward, rows[m]) for m in range(2)]
        rank.close()
        return found

    arrived = on_each_rank(case.places, arrived_at)
    for place, per_microbatch in zip(case.places, arrived, strict=True):
        dp_rank = (place - 2) // tp
        expected = [tokens(LANGUAGE, m, dp_rank) if place >= 2 else [] for m in range(2)]
        assert per_microbatch == expected, why


def test_a_rank_without_tokens_has_an_empty_exchange_in_both_directions() -> None:
    case = case_in_order([4, 0], Grid(dp=2), Grid(tp=2, dp=2), first_destination=2)
    assert {case.forward[place] for place in (1, 4, 5)} == {Exchange()}
    assert {case.backward[place] for place in (1, 4, 5)} == {Exchange()}
