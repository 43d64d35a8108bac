"""What a boundary asks of a transport: start a group of messages, wait for it later.

Buffers are contiguous tensors of shape ``[rows, D]``. Peers are global ranks. Every rank
starts its exchanges in schedule order. Two ranks' messages of one call match in their order;
gloo matches calls by tag, NCCL by the order of the calls.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

TAGS_PER_STEP = 1 << 16
"""A tag is a multiple of this, which differs from step to step, plus the microbatch."""

Message = tuple[int, Tensor]
"""A peer and the buffer to send to it, or to fill from it."""


class Pending(Protocol):
    """Messages under way; their buffers must live until ``wait`` returns."""

    def wait(self) -> None:
        """Return when all messages are done; on a GPU, make its current stream wait for them.

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
