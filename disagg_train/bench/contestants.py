"""Ours, and the raw messages that bound it. Tensors: T tokens, D hidden."""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store

from disagg_train.bench.case import BoundaryCase
from disagg_train.boundary.communicator import Communicator
from disagg_train.boundary.exchange import Exchange
from disagg_train.boundary.gloo import GlooGroup, GlooTransport
from disagg_train.boundary.layouts import holding_of
from disagg_train.boundary.step_exchanges import edge_places
from disagg_train.errors import BoundaryError
from disagg_train.topology.layout import Holding

_CPU = torch.device("cpu")


class Contestant(Protocol):
    """Carries all tokens from the source's ranks to the destination's, and back."""

    def forward(self) -> None:
        """Carry activations; return when this rank has sent and holds what it needs."""

    def backward(self) -> None:
        """Carry gradients."""


class Ours:
    """This project's boundary on one rank.

    Args:
        case: what is measured.
        store: where the ranks meet.
        place: this rank.
        deadline_s: of any wait.
    """

    def __init__(self, case: BoundaryCase, store: Store, place: int, deadline_s: float) -> None:
        boundary, layouts = case.boundary, case.boundary.layouts(case.plan, 0)
        self._is_source = place in boundary.source.places
        exchanges = boundary.exchanges(case.plan, place)[0]
        self._forward, self._backward = exchanges.forward, exchanges.backward
        layout = layouts.source if self._is_source else layouts.compact
        held = holding_of(layout, place)
        assert held is not None
        self._held: Holding = held
        num_rows = (self._backward if self._is_source else self._forward).num_rows
        self._rows_TD = torch.zeros(num_rows, case.hidden_size)
        self._rows_TD[held.rows] = _numbered(held.token_ids, case.hidden_size)

        def communicator(direction: str, gradients: bool) -> Communicator:
            def join(name: str, places: Sequence[int]) -> GlooTransport:
                return GlooTransport(GlooGroup(name, store, places, place, deadline_s))

            transport = join(direction, edge_places(boundary))
            alike = boundary.replicas_of(place, gradients)
            replicas = join(f"{direction}/replicas/{alike[0]}", alike) if alike else None
            return Communicator(direction, transport, case.hidden_size, _CPU, replicas)

        self.activations = communicator("forward", gradients=False)
        self.gradients = communicator("backward", gradients=True)

    def forward(self) -> None:
        """Carry activations, and let the destination's replicas gather."""
        self._let_go(
            self.activations, self._carry(self.activations, self._forward, self._is_source)
        )

    def backward(self) -> None:
        """Carry gradients, and let the source's replicas gather."""
        sends = not self._is_source
        self._let_go(self.gradients, self._carry(self.gradients, self._backward, sends))

    @staticmethod
    def _let_go(communicator: Communicator, rows_TD: Tensor | None) -> None:
        """Give the rows' memory back, as a training step does after its backward."""
        if rows_TD is not None:
            communicator.release(rows_TD)

    def _carry(self, communicator: Communicator, exchange: Exchange, sends: bool) -> Tensor | None:
        found = None
        if sends:
            communicator.launch(0, exchange, self._rows_TD)
        else:
            communicator.post(0, exchange)
            found = communicator.finish(0)
        communicator.drain()
        return found

    def check(self) -> None:
        """Carry both ways once and hold every row against what it must be.

        Raises:
            BoundaryError: a row is wrong; nothing that is measured would mean anything.
        """
        arrived_TD = self._carry(self.activations, self._forward, sends=self._is_source)
        returned_TD = self._carry(self.gradients, self._backward, sends=not self._is_source)
        for rows_TD in (arrived_TD, returned_TD):
            if rows_TD is not None and not torch.equal(rows_TD, self._rows_TD):
                raise BoundaryError("rows arrived that differ from the rows sent")

    @property
    def received_bytes(self) -> tuple[int, int]:
        """Bytes that one forward and one backward bring to this rank from the other side."""
        row_bytes = self._rows_TD.shape[1] * self._rows_TD.itemsize
        return self._forward.num_received * row_bytes, self._backward.num_received * row_bytes

    def close(self) -> None:
        """Leave both directions."""
        self.activations.close()
        self.gradients.close()


def _numbered(token_ids: Sequence[int], width: int) -> Tensor:
    """Return rows that name their token; fp32 holds every number up to 2**24 exactly."""
    return torch.tensor(token_ids, dtype=torch.float32)[:, None].expand(-1, width)


class RawMessages:
    """One ``torch.distributed`` send and receive per pair of ranks, of the same bytes in sum.

    How many pairs there are is the case's to say (``BoundaryCase.raw_pairs``).

    It receives into the same memory again and again, as ours does once a microbatch's rows
    are given back. New memory would cost about half as much as a transfer over loopback.

    Args:
        case: what is measured.
        place: this rank.
    """

    def __init__(self, case: BoundaryCase, place: int) -> None:
        pairs, num_sources = case.raw_pairs, case.source.num_ranks
        self._is_source = place < num_sources
        index = place if self._is_source else place - num_sources
        self._peer = index + num_sources if self._is_source else index
        self._takes_part = index < pairs
        self._rows_TD = torch.ones(case.num_tokens // pairs, case.hidden_size)

    def forward(self) -> None:
        """Send from the source's ranks to the destination's."""
        self._carry(sends=self._is_source)

    def backward(self) -> None:
        """Send from the destination's ranks to the source's."""
        self._carry(sends=not self._is_source)

    def _carry(self, sends: bool) -> None:
        if not self._takes_part:
            return
        if sends:
            dist.send(self._rows_TD, self._peer)
        else:
            dist.recv(self._rows_TD, self._peer)
