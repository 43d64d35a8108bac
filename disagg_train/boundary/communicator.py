"""One direction of one boundary on one rank: pack rows, exchange, unpack, complete.

``launch`` starts an exchange where this rank sends; a rank that only receives posts its
next receive with ``post``, one ahead. ``finish`` waits, puts the rows in their places and
lets the replicas complete each other's rows. Rows are ``[T, D]``.

Neighbouring rows are sent from the buffer where they lie and received into the place where
they stay; only scattered rows are copied. On loopback a copy costs as much as a transfer.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from disagg_train.boundary.buffers import MessageBuffers
from disagg_train.boundary.exchange import Exchange, Message, Rows
from disagg_train.boundary.rows import copy_local, is_scattered, read, write
from disagg_train.boundary.transport import TAGS_PER_STEP, Pending, Transport
from disagg_train.boundary.transport import Message as Sent
from disagg_train.schedule.ops import MOST_SENDS

_TAGS = 1 << 30


class _Arrivals:
    """Rows on their way into a buffer: neighbours land in it, scattered ones beside it."""

    def __init__(
        self, rows_TD: Tensor, incoming: Sequence[Message], beside: MessageBuffers
    ) -> None:
        self._rows_TD, self._beside = rows_TD, beside
        self._scattered: list[tuple[Rows, Tensor]] = []
        self.messages: list[Sent] = []
        for peer, rows in incoming:
            self.messages.append((peer, self._target(rows)))

    def _target(self, rows: Rows) -> Tensor:
        if not is_scattered(rows):
            return self._rows_TD[rows[0] : rows[-1] + 1]
        target = self._beside.take(len(rows))
        self._scattered.append((rows, target))
        return target

    def settle(self) -> None:
        """Put the scattered rows, now that they are here, into their places."""
        for rows, target in self._scattered:
            write(self._rows_TD, rows, target)
            self._beside.give_back(target)
        self._scattered.clear()


@dataclass
class _UnderWay:
    """An exchange between its start and its finish.

    Args:
        exchange: this rank's part.
        rows_TD: the buffer to fill.
        tag: of all its messages.
        arrivals: rows from the other side.
        receives: the messages that bring them.
    """

    exchange: Exchange
    rows_TD: Tensor
    tag: int
    arrivals: _Arrivals
    receives: Pending


class Communicator:
    """Carries activations (or gradients) over a boundary, microbatch by microbatch.

    Args:
        name: of the boundary and direction, in errors.
        transport: carries messages between the two sides.
        width: D, values per row.
        device: where rows live.
        replicas: carries messages among the ranks that hold the same rows, if any do.
        dtype: of the rows on the wire.
    """

    def __init__(
        self,
        name: str,
        transport: Transport,
        width: int,
        device: torch.device,
        replicas: Transport | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.name, self.width, self.device, self.dtype = name, width, device, dtype
        self._transport, self._replicas = transport, replicas
        self.buffers = MessageBuffers(width, dtype, device)
        self._under_way: dict[int, _UnderWay] = {}
        self._sends: deque[tuple[Pending, list[Tensor]]] = deque()
        self._tag = 0
        self._sent_bytes = 0

    def launch(self, microbatch: int, exchange: Exchange, rows_TD: Tensor) -> None:
        """Start an exchange: send this rank's rows, and post what it is to receive.

        Args:
            microbatch: names the exchange until ``finish``.
            exchange: this rank's part.
            rows_TD: the buffer whose rows are sent; it must not change before ``drain``.

        Raises:
            BoundaryError: an earlier send is not received before the deadline.
        """
        self._start(microbatch, exchange, rows_TD.detach().to(self.dtype))

    def post(self, microbatch: int, exchange: Exchange) -> None:
        """Post the receives of an exchange in which this rank sends nothing."""
        self._start(microbatch, exchange, None)

    def _start(self, microbatch: int, exchange: Exchange, source_TD: Tensor | None) -> None:
        tag, rows_TD = self._tag + microbatch, self._buffer(exchange)
        arrivals = _Arrivals(rows_TD, exchange.receives, self.buffers)
        outgoing: list[Sent] = []
        copies: list[Tensor] = []
        if source_TD is not None:
            self._await_sends(MOST_SENDS - 1)
            outgoing, copies = self._read_each(source_TD, exchange.sends)
        sends, receives = self._transport.start(outgoing, arrivals.messages, tag)
        if outgoing:
            self._sends.append((sends, copies))
        if source_TD is not None and exchange.local[0]:
            copy_local(exchange.local, source_TD, rows_TD)
        self._under_way[microbatch] = _UnderWay(exchange, rows_TD, tag, arrivals, receives)
        self._sent_bytes += exchange.num_sent * self.width * self.dtype.itemsize

    def _buffer(self, exchange: Exchange) -> Tensor:
        """Return the buffer to fill, zeroed where some of its rows will not arrive."""
        rows_TD = self.buffers.take(exchange.num_rows)
        return rows_TD if exchange.num_filled == exchange.num_rows else rows_TD.zero_()

    def finish(self, microbatch: int) -> Tensor:
        """Wait for an exchange's receives and return the filled buffer, ``[num_rows, D]``.

        Give the buffer to ``release`` once nothing reads it any more.

        Raises:
            BoundaryError: the deadline passed or a peer is gone; names the boundary, the
                microbatch and the peer.
        """
        under_way = self._under_way.pop(microbatch)
        under_way.receives.wait()
        under_way.arrivals.settle()
        self._complete(under_way)
        return under_way.rows_TD

    def _complete(self, under_way: _UnderWay) -> None:
        """Hand this rank's rows on to the other replicas, and take theirs."""
        exchange, rows_TD = under_way.exchange, under_way.rows_TD
        if self._replicas is None or not (exchange.hands_on or exchange.handed):
            return
        handed = _Arrivals(rows_TD, exchange.handed, self.buffers)
        outgoing, copies = self._read_each(rows_TD, exchange.hands_on)
        sends, receives = self._replicas.start(outgoing, handed.messages, under_way.tag)
        receives.wait()
        handed.settle()
        sends.wait()
        self._give_back(copies)

    def _read_each(
        self, rows_TD: Tensor, messages: Sequence[Message]
    ) -> tuple[list[Sent], list[Tensor]]:
        """Return the messages, and the copies among them, which are to be given back.

        Peers that get the same rows share one copy.
        """
        found: dict[Rows, Tensor] = {}
        for _, rows in messages:
            if rows not in found:
                found[rows] = read(rows_TD, rows, self.buffers)
        copies = [message_TD for rows, message_TD in found.items() if is_scattered(rows)]
        return [(peer, found[rows]) for peer, rows in messages], copies

    def _give_back(self, copies: Sequence[Tensor]) -> None:
        for message_TD in copies:
            self.buffers.give_back(message_TD)

    def release(self, rows_TD: Tensor) -> None:
        """Let the memory of a finished exchange's buffer be used again."""
        self.buffers.give_back(rows_TD)

    def drain(self) -> None:
        """Wait until every send of the step has been received."""
        self._await_sends(0)
        self._tag = (self._tag + TAGS_PER_STEP) % _TAGS

    def _await_sends(self, left: int) -> None:
        """Wait for the oldest sends, so that no more than ``left`` hold their rows.

        The schedule is proved for sends that block until they are received. On GPUs the
        allocator knows what is still in use, and the stream that computes goes on.
        """
        while len(self._sends) > left:
            pending, copies = self._sends[0]
            if self.device.type == "cpu":
                pending.wait()
            self._sends.popleft()
            self._give_back(copies)

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
