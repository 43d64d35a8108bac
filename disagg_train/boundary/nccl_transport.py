"""The transport between GPUs: groups of messages over an NCCL communicator.

How a message finds its buffer: NCCL has no tags. It matches the n-th send of a pair of
ranks with the n-th receive of that pair, per communicator. Each direction of a boundary has
a communicator of its own, both sides start its exchanges in microbatch order, and list the
messages of a pair in one order: so the order of calls, and of messages in a call, is the
matching. Messages without rows are left out on both sides, which know all sizes.

How streams are ordered: messages wait for what the current stream holds at ``start``, and
the stream that is current at ``wait`` waits for them. The host waits for nothing.
"""

from collections.abc import Sequence

from disagg_train.boundary.nccl import NcclGroup
from disagg_train.boundary.transport import TAGS_PER_STEP, Message, Pending
from disagg_train.boundary.watchdog import Watch
from disagg_train.boundary.wire_types import check_sendable


class _Exchange:
    """The messages of one ``start``: its sends and receives end together."""

    def __init__(self, group: NcclGroup, what: str) -> None:
        self._group, self._done = group, group.stream.mark()
        self._watch = Watch(group, what, self._done, group.deadline_s)
        group.watchdog.watch(self._watch)

    def wait(self) -> None:
        """Make the current stream wait for the messages; the host goes on.

        Raises:
            BoundaryError: an exchange of this process failed, this one or another.
        """
        self._group.watchdog.check()
        if self._watch.awaited is None:
            self._watch.awaited = self._group.stream.mark_current()
        self._group.stream.hold_back_current(self._done)


class _Nothing:
    """An exchange without messages."""

    def wait(self) -> None:
        """Return at once."""


class NcclTransport:
    """Point-to-point messages over an ``NcclGroup``."""

    def __init__(self, group: NcclGroup) -> None:
        self._group = group

    def start(
        self, sends: Sequence[Message], receives: Sequence[Message], tag: int
    ) -> tuple[Pending, Pending]:
        """Start all messages of one exchange, once the current stream's work is done.

        ``tag`` only names the exchange in errors; the order of calls matches messages.

        Raises:
            BoundaryError: an exchange of this process failed, or a buffer cannot be sent.
        """
        group, stream = self._group, self._group.stream
        group.watchdog.check()
        sends, receives = _with_rows(sends), _with_rows(receives)
        buffers = [buffer for _, buffer in (*sends, *receives)]
        if not buffers:
            return _Nothing(), _Nothing()
        for buffer in buffers:
            check_sendable(group.name, buffer)
        stream.follow()
        group.exchange(sends, receives)
        for buffer in buffers:
            stream.keep(buffer)
        exchange = _Exchange(group, _describe(sends, receives, tag))
        return exchange, exchange

    def close(self) -> None:
        """Leave the group."""
        self._group.close()


def _with_rows(messages: Sequence[Message]) -> list[Message]:
    return [(peer, buffer) for peer, buffer in messages if buffer.numel()]


def _describe(sends: Sequence[Message], receives: Sequence[Message], tag: int) -> str:
    """Return what an error calls this exchange: its microbatch, op and peers."""
    parts = []
    for op, messages in (("send to", sends), ("receive from", receives)):
        if messages:
            parts.append(f"{op} rank " + ", ".join(str(peer) for peer, _ in messages))
    return f"microbatch {tag % TAGS_PER_STEP}, " + " and ".join(parts)
