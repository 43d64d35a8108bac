"""Boundaries to cross over any transport, and what arrives: for parity between transports."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from disagg_train.boundary.communicator import Communicator
from disagg_train.boundary.exchange import Exchange
from disagg_train.boundary.layouts import Side
from disagg_train.boundary.step_exchanges import Boundary, edge_places
from disagg_train.planner.in_order import in_order
from disagg_train.planner.step_plan import SampleSize, Slot, StepPlan
from disagg_train.topology.grid import Grid
from tests.gpu.ranks import RankContext

WIDTH = 48
NUM_RANKS = 4
_MICROBATCHES = 3
_SAMPLES = 12


@dataclass(frozen=True)
class Crossing:
    """A boundary on at most four ranks, and a step's random samples.

    Args:
        name: for groups and errors.
        source: the encoder's ranks by axis.
        destination: the LLM's.
        sp: whether tp splits the LLM's tokens.
        shared: whether both sides are the same ranks.
    """

    name: str
    source: Grid
    destination: Grid
    sp: bool = False
    shared: bool = False

    @property
    def boundary(self) -> Boundary:
        """The edge between the two sides."""
        first = 0 if self.shared else self.source.size
        places = tuple(range(first, first + self.destination.size))
        return Boundary(
            self.name,
            Side("vision", self.source, tuple(range(self.source.size))),
            Side("language", self.destination, places, self.sp),
        )

    @property
    def plan(self) -> StepPlan:
        """The same random step on every rank; some samples have no image."""
        draw = random.Random(self.name)
        sizes = []
        for index in range(_SAMPLES):
            tokens = draw.choice([0, 1, 7, 64, 300])
            slots = {"vision": (Slot(2, tokens),)} if tokens else {}
            sizes.append(SampleSize(index, 4 + tokens, 1, slots))
        assignment = {
            "vision": in_order(_SAMPLES, _MICROBATCHES, self.source.dp),
            "language": in_order(_SAMPLES, _MICROBATCHES, self.destination.dp),
        }
        return StepPlan(0, tuple(sizes), assignment)


CROSSINGS = [
    Crossing("dp2 to tp2", Grid(dp=2), Grid(tp=2)),
    Crossing("dp2 to tp2 sp", Grid(dp=2), Grid(tp=2), sp=True),
    Crossing("tp2 to dp2", Grid(tp=2), Grid(dp=2)),
    Crossing("one to dp3", Grid(), Grid(dp=3)),
    Crossing("dp2 to tp2, shared", Grid(dp=2), Grid(tp=2), shared=True),
    Crossing("dp4 to tp2 dp2, shared", Grid(dp=4), Grid(tp=2, dp=2), shared=True),
]


def cross(
    rank: RankContext, crossing: Crossing, device: torch.device, dtype: torch.dtype, epoch: int
) -> list[Tensor]:
    """Carry a step forward and back; return what this rank received, on the CPU."""
    boundary, place = crossing.boundary, rank.place
    if place not in edge_places(boundary):
        return []
    exchanges = boundary.exchanges(crossing.plan, place)
    arrived = []
    for backward in (False, True):
        communicator = open_communicator(rank, boundary, backward, device, dtype, epoch)
        parts = [part.backward if backward else part.forward for part in exchanges]
        senders = boundary.destination_places if backward else boundary.source_places
        receivers = boundary.source_places if backward else boundary.destination_places
        rows = _carry(communicator, parts, place in senders, place in receivers, place)
        arrived += [rows_TD.float().cpu() for rows_TD in rows]
        communicator.drain()
        communicator.close()
    return arrived


def _carry(
    communicator: Communicator, parts: list[Exchange], sends: bool, receives: bool, place: int
) -> Iterator[Tensor]:
    """Yield each microbatch's rows; what is received is posted in order, none ahead."""
    for microbatch, part in enumerate(parts):
        if sends:
            rows_TD = draw_rows(part, communicator, seed=100 * place + microbatch)
            communicator.launch(microbatch, part, rows_TD)
        else:
            communicator.post(microbatch, part)
        if receives:
            yield communicator.finish(microbatch).clone()


def draw_rows(part: Exchange, communicator: Communicator, seed: int) -> Tensor:
    """Draw a buffer that holds every row the exchange reads."""
    read = [row for _, rows in part.sends for row in rows] + list(part.local[0])
    generator = torch.Generator().manual_seed(seed)
    rows_TD = torch.randn(max(read, default=-1) + 1, WIDTH, generator=generator)
    return rows_TD.to(communicator.device, communicator.dtype)


def open_communicator(
    rank: RankContext,
    boundary: Boundary,
    backward: bool,
    device: torch.device,
    dtype: torch.dtype,
    epoch: int,
) -> Communicator:
    """Open one direction of a boundary, replicas included, as the engine does."""
    name = f"{boundary.name}/{'backward' if backward else 'forward'}"
    unique = f"{name}/{device.type}/{dtype}/e{epoch}"
    transport = rank.transport(unique, edge_places(boundary), device)
    replicas, places = None, boundary.replicas_of(rank.place, backward)
    if places:
        replicas = rank.transport(f"{unique}/replicas/{places[0]}", places, device)
    return Communicator(name, transport, WIDTH, device, replicas, dtype)
