"""One direction of one boundary on one rank: pack rows, exchange, unpack, gather.

``launch`` starts an exchange where this rank sends; a rank that only receives posts its
next receive with ``post``, one ahead. ``finish`` waits, puts the rows in their places and
lets the replicas complete each other's rows. Rows are ``[T, D]``.
"""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from disagg_train.boundary.exchange import Exchange, Gather
from disagg_train.boundary.gloo import GlooGroup
from disagg_train.boundary.local import LocalTransport
from disagg_train.boundary.transport import Pending, Transport
from disagg_train.errors import BoundaryError


_TAGS_PER_STEP = 1 << 16
_TAGS = 1 << 30


@dataclass
class _UnderWay:
    exchange: Exchange
    rows_TD: Tensor
    buffers: list[tuple[Tensor, Tensor]]
    receives: Pending


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
        reads, writes = exchange.local
        outgoing = [(peer, source_TD[self._index(rows)]) for peer, rows in exchange.sends]
        buffers = [(self._index(rows), self._empty(len(rows))) for _, rows in exchange.receives]
        peers = [peer for peer, _ in exchange.receives]
        incoming = [(peer, buffer) for peer, (_, buffer) in zip(peers, buffers, strict=True)]
        sends, receives = self._transport.start(outgoing, incoming, self._tag + microbatch)
        self._sends.append(sends)
        if reads:
            here = self._empty(len(reads))
            self._local.start([(0, source_TD[self._index(reads)])], [(0, here)], microbatch)
            buffers.append((self._index(writes), here))
        rows_TD = torch.zeros(exchange.num_rows, self.width, dtype=self.dtype, device=self.device)
        self._under_way[microbatch] = _UnderWay(exchange, rows_TD, buffers, receives)
        self._sent_bytes += exchange.num_sent * self.width * self.dtype.itemsize

    def finish(self, microbatch: int) -> Tensor:
        """Wait for an exchange's receives and return the filled buffer, ``[num_rows, D]``.

        Raises:
            BoundaryError: the deadline passed or a peer is gone; names the boundary, the
                microbatch and the peer.
        """
        under_way = self._under_way.pop(microbatch)
        try:
            under_way.receives.wait()
        except BoundaryError as error:
            raise BoundaryError(f"{self.name}, microbatch {microbatch}: {error}") from None
        for index, buffer in under_way.buffers:
            under_way.rows_TD[index] = buffer
        if under_way.exchange.gather is not None:
            self._gather(under_way.exchange.gather, under_way.rows_TD)
        return under_way.rows_TD

    def _gather(self, gather: Gather, rows_TD: Tensor) -> None:
        """Fill the rows that the other replicas received; shares are padded to the longest."""
        longest = max(len(share) for share in gather.shares)
        if longest == 0 or self._replicas is None:
            return
        mine = gather.shares[gather.places.index(self._replicas.place)]
        padded = self._empty(longest)
        padded[: len(mine)] = rows_TD[self._index(mine)]
        for share, part in zip(gather.shares, self._replicas.all_gather(padded), strict=True):
            if share is not mine:
                rows_TD[self._index(share)] = part[: len(share)]

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
        self._transport.close()
        if self._replicas is not None:
            self._replicas.close()

    def _index(self, rows: tuple[int, ...]) -> Tensor | slice:
        """Return an index of rows; a run of neighbours is a slice, which needs no gather."""
        if rows and rows == tuple(range(rows[0], rows[0] + len(rows))):
            return slice(rows[0], rows[-1] + 1)
        return torch.tensor(rows, dtype=torch.int64, device=self.device)

    def _empty(self, num_rows: int) -> Tensor:
        return torch.empty(num_rows, self.width, dtype=self.dtype, device=self.device)
