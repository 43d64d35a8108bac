"""What a boundary asks of a transport: start a group of messages, wait for it later.

Buffers are contiguous tensors of shape ``[rows, D]``. Peers are global ranks. Messages
between two ranks are matched by tag; every rank starts its exchanges in schedule order.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

Message = tuple[int, Tensor]
"""A peer and the buffer to send to it, or to fill from it."""


class Pending(Protocol):
    """Messages under way; their buffers must live until ``wait`` returns."""

    def wait(self) -> None:
        """Return when all messages are done.

        Raises:
            BoundaryError: the deadline passed or a peer is gone.
        """


class Transport(Protocol):
    """Carries one direction of one boundary."""

    def start(
        self, sends: Sequence[Message], receives: Sequence[Message], tag: int
    ) -> tuple[Pending, Pending]:
        """Start all messages of one exchange; return its sends and its receives."""

    def close(self) -> None:
        """Give up the connection; messages under way fail."""
