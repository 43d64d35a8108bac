"""One direction of one boundary on one rank: pack rows, exchange, unpack, gather.

``launch`` starts an exchange where this rank sends; a rank that only receives posts its
next receive with ``post``, one ahead. ``finish`` waits, puts the rows in their places and
lets the replicas complete each other's rows. Rows are ``[T, D]``.

Neighbouring rows are sent from the buffer where they lie and received into the place where
they stay; only scattered rows are copied. On loopback a copy costs as much as a transfer.
"""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from disagg_train.boundary.exchange import Exchange, Gather, Rows
from disagg_train.boundary.gloo import GlooGroup, GlooTransport
from disagg_train.boundary.local import LocalTransport
from disagg_train.boundary.transport import Message, Pending, Transport
from disagg_train.errors import BoundaryError

_TAGS_PER_STEP = 1 << 16
_TAGS = 1 << 30
_HERE = 0


class _Arrivals:
    """Rows on their way into a buffer: neighbours land in it, scattered ones beside it."""

    def __init__(self, rows_TD: Tensor) -> None:
        self._rows_TD = rows_TD
        self._scattered: list[tuple[Tensor, Tensor]] = []
        self.messages: list[Message] = []

    def expect(self, peer: int, rows: Rows) -> None:
        """Add a message from ``peer`` that fills ``rows``."""
        index = _index(rows, self._rows_TD.device)
        if isinstance(index, slice):
            target = self._rows_TD[index]
        else:
            target = self._rows_TD.new_empty(len(rows), self._rows_TD.shape[1])
            self._scattered.append((index, target))
        self.messages.append((peer, target))

    def settle(self) -> None:
        """Put the scattered rows, now that they are here, into their places."""
        for index, target in self._scattered:
            self._rows_TD[index] = target


@dataclass
class _UnderWay:
    """An exchange between its start and its finish.

    Args:
        rows_TD: the buffer to fill.
        tag: of all its messages.
        arrivals: rows from the other side, and from this process.
        receives: the messages that bring them.
        gather: how the replicas complete each other's rows.
        gathered: rows that the other replicas hand on.
        hand_ons: the messages that bring those; None where there are no replicas.
    """

    rows_TD: Tensor
    tag: int
    arrivals: _Arrivals
    receives: Pending
    gather: Gather | None
    gathered: _Arrivals
    hand_ons: Pending | None


class Communicator:
    """Carries activations (or gradients) over a boundary, microbatch by microbatch.

    Args:
        name: of the boundary and direction, in errors.
        transport: carries messages between processes.
        width: D, values per row.
        device: where rows live.
        replicas: group of the ranks that hold the same rows as this one, if any.
        dtype: of the rows on the wire.
    """

    def __init__(
        self,
        name: str,
        transport: Transport,
        width: int,
        device: torch.device,
        replicas: GlooGroup | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.name, self.width, self.device, self.dtype = name, width, device, dtype
        self._transport, self._replicas, self._local = transport, replicas, LocalTransport()
        self._under_way: dict[int, _UnderWay] = {}
        self._sends: deque[Pending] = deque()
        self._tag = 0
        self._sent_bytes = 0

    def launch(self, microbatch: int, exchange: Exchange, rows_TD: Tensor) -> None:
        """Start an exchange: send this rank's rows, and post what it is to receive.

        Args:
            microbatch: names the exchange until ``finish``.
            exchange: this rank's part.
            rows_TD: the buffer whose rows are sent; it must not change before ``drain``.
        """
        self._start(microbatch, exchange, rows_TD.detach())

    def post(self, microbatch: int, exchange: Exchange) -> None:
        """Post the receives of an exchange in which this rank sends nothing."""
        self._start(microbatch, exchange, self._empty(0))

    def _start(self, microbatch: int, exchange: Exchange, source_TD: Tensor) -> None:
        tag, rows_TD = self._tag + microbatch, self._buffer(exchange)
        arrivals, gathered = _Arrivals(rows_TD), _Arrivals(rows_TD)
        outgoing = [(peer, _read(source_TD, rows)) for peer, rows in exchange.sends]
        for peer, rows in exchange.receives:
            arrivals.expect(peer, rows)
        sends, receives = self._transport.start(outgoing, arrivals.messages, tag)
        self._sends.append(sends)
        hand_ons = self._post_hand_ons(exchange.gather, gathered, tag)
        self._copy_local(exchange.local, source_TD, arrivals, tag)
        self._under_way[microbatch] = _UnderWay(
            rows_TD, tag, arrivals, receives, exchange.gather, gathered, hand_ons
        )
        self._sent_bytes += exchange.num_sent * self.width * self.dtype.itemsize

    def _buffer(self, exchange: Exchange) -> Tensor:
        """Return the buffer to fill, zeroed where some of its rows will not arrive."""
        arriving = exchange.num_received + len(exchange.local[1])
        if exchange.gather is not None and self._replicas is not None:
            arriving = sum(len(share) for share in exchange.gather.shares)
        rows_TD = self._empty(exchange.num_rows)
        return rows_TD if arriving == exchange.num_rows else rows_TD.zero_()

    def _copy_local(
        self, local: tuple[Rows, Rows], source_TD: Tensor, arrivals: _Arrivals, tag: int
    ) -> None:
        """Copy the rows that stay in this process."""
        reads, writes = local
        if not reads:
            return
        arrivals.expect(_HERE, writes)
        self._local.start([(_HERE, _read(source_TD, reads))], arrivals.messages[-1:], tag)

    def _post_hand_ons(
        self, gather: Gather | None, gathered: _Arrivals, tag: int
    ) -> Pending | None:
        """Post the receives of what the other replicas will hand on to this one."""
        if gather is None or self._replicas is None:
            return None
        for place, share in zip(gather.places, gather.shares, strict=True):
            if share and place != self._replicas.place:
                gathered.expect(place, share)
        return GlooTransport(self._replicas).start([], gathered.messages, tag)[1]

    def finish(self, microbatch: int) -> Tensor:
        """Wait for an exchange's receives and return the filled buffer, ``[num_rows, D]``.

        Raises:
            BoundaryError: the deadline passed or a peer is gone; names the boundary, the
                microbatch and the peer.
        """
        under_way = self._under_way.pop(microbatch)
        try:
            under_way.receives.wait()
            under_way.arrivals.settle()
            self._hand_on(under_way)
        except BoundaryError as error:
            raise BoundaryError(f"{self.name}, microbatch {microbatch}: {error}") from None
        return under_way.rows_TD

    def _hand_on(self, under_way: _UnderWay) -> None:
        """Send this rank's share to the other replicas, and wait for theirs."""
        gather = under_way.gather
        if gather is None or self._replicas is None or under_way.hand_ons is None:
            return
        mine = gather.shares[gather.places.index(self._replicas.place)]
        others = [place for place in gather.places if place != self._replicas.place]
        share_TD = _read(under_way.rows_TD, mine)
        outgoing = [(place, share_TD) for place in others if mine]
        sends, _ = GlooTransport(self._replicas).start(outgoing, [], under_way.tag)
        under_way.hand_ons.wait()
        under_way.gathered.settle()
        sends.wait()

    def drain(self) -> None:
        """Wait until every send of the step has been received."""
        while self._sends:
            self._sends[0].wait()
            self._sends.popleft()
        self._tag = (self._tag + _TAGS_PER_STEP) % _TAGS

    def take_sent_bytes(self) -> int:
        """Return the bytes sent to other processes since the last call."""
        sent, self._sent_bytes = self._sent_bytes, 0
        return sent

    def close(self) -> None:
        """Leave the boundary."""
        self._sends.clear()
        self._under_way.clear()
        self._transport.close()
        if self._replicas is not None:
            self._replicas.close()

    def _empty(self, num_rows: int) -> Tensor:
        return torch.empty(num_rows, self.width, dtype=self.dtype, device=self.device)


def _read(source_TD: Tensor, rows: Rows) -> Tensor:
    """Return rows as one contiguous message: a view of neighbours, else a copy."""
    return source_TD[_index(rows, source_TD.device)].contiguous()


def _index(rows: Rows, device: torch.device) -> Tensor | slice:
    """Return an index of rows; a run of neighbours is a slice, which needs no copy."""
    if rows and rows == tuple(range(rows[0], rows[0] + len(rows))):
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows, dtype=torch.int64, device=device)
