"""The transport on CPUs: a private gloo group, never the default process group.

gloo's habits that this file lives with (measured, torch 2.15): a dropped ``Work`` loses its
message; a wait that times out closes the pair for good, so there is one wait with the full
deadline and no retry; a send's wait returns once its receive is posted.
"""

from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, Store

from disagg_train.boundary.transport import TAGS_PER_STEP, Message, Pending
from disagg_train.errors import BoundaryError


class GlooGroup:
    """A gloo group among some global ranks of the job, outside any default world.

    Args:
        name: unique in the job; the epoch is part of it, so that a group that is rebuilt
            never meets an old message.
        store: the job's store.
        places: global ranks of the members, the same list on every member.
        place: global rank of this process.
        deadline_s: how long joining, or any one wait, may take.

    Raises:
        BoundaryError: a member does not arrive before the deadline.
    """

    def __init__(
        self, name: str, store: Store, places: Sequence[int], place: int, deadline_s: float
    ) -> None:
        self.name, self.place = name, place
        self.places = tuple(places)
        self.deadline = timedelta(seconds=deadline_s)
        rank = self.places.index(place)
        prefixed = PrefixStore(f"gloo/{name}", store)
        arrivals = PrefixStore(f"arrived/{name}", store)
        arrivals.set(str(place), "")
        try:
            self._open: ProcessGroupGloo | None = ProcessGroupGloo(
                prefixed, rank, len(self.places), self.deadline
            )
        except RuntimeError as error:
            raise BoundaryError(
                f"{name}: rank {place} waited {deadline_s:g} s; of the ranks {self.places}, "
                f"{self._absent(arrivals)} did not arrive: {error}"
            ) from None

    def _absent(self, arrivals: Store) -> list[int]:
        return [place for place in self.places if not arrivals.check([str(place)])]

    def send(self, tensor: Tensor, peer: int, tag: int) -> dist.Work:
        """Start a message to the global rank ``peer``.

        Raises:
            BoundaryError: the peer is gone.
        """
        try:
            return self._group.send([tensor], self.places.index(peer), tag)
        except RuntimeError as error:
            raise self._failed(f"{_which(tag)} send to rank {peer}", error) from None

    def recv(self, tensor: Tensor, peer: int, tag: int) -> dist.Work:
        """Start filling ``tensor`` from the global rank ``peer``.

        Raises:
            BoundaryError: the peer is gone.
        """
        try:
            return self._group.recv([tensor], self.places.index(peer), tag)
        except RuntimeError as error:
            raise self._failed(f"{_which(tag)} receive from rank {peer}", error) from None

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Return every member's ``tensor`` (all of one shape), in the order of ``places``."""
        parts = [tensor.new_empty(tensor.shape) for _ in self.places]
        self.wait(self._group.allgather([parts], [tensor]), "all_gather")
        return parts

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum ``tensor`` over the members, in place."""
        self.wait(self._group.allreduce([tensor]), "all_reduce")

    def wait(self, work: dist.Work, what: str) -> None:
        """Wait for ``work``, once, with the full deadline.

        Raises:
            BoundaryError: naming the group and what was waited for.
        """
        try:
            work.wait(self.deadline)
        except RuntimeError as error:
            raise self._failed(what, error) from None

    def _failed(self, what: str, error: RuntimeError) -> BoundaryError:
        return BoundaryError(f"{self.name}: rank {self.place} in {what}: {error}")

    @property
    def _group(self) -> ProcessGroupGloo:
        if self._open is None:
            raise BoundaryError(f"{self.name}: rank {self.place} left this group")
        return self._open

    def close(self) -> None:
        """Leave the group; peers that still wait for this rank fail at once.

        gloo closes its connections when the group is destroyed, not when it is aborted.
        """
        self._open = None


class _Works:
    """Messages under way, with their buffers kept alive until they are done."""

    def __init__(self, group: GlooGroup, works: Sequence[tuple[dist.Work, Tensor, str]]) -> None:
        self._group, self._works = group, list(works)

    def wait(self) -> None:
        while self._works:
            work, _, what = self._works[0]
            self._group.wait(work, what)
            self._works.pop(0)


class GlooTransport:
    """Point-to-point messages over a ``GlooGroup``."""

    def __init__(self, group: GlooGroup) -> None:
        self._group = group

    def start(
        self, sends: Sequence[Message], receives: Sequence[Message], tag: int
    ) -> tuple[Pending, Pending]:
        """Start all messages of one exchange; receives first, so that sends find them."""
        group = self._group
        incoming = [
            (group.recv(buffer, peer, tag), buffer, f"{_which(tag)} receive from rank {peer}")
            for peer, buffer in receives
        ]
        outgoing = [
            (group.send(buffer, peer, tag), buffer, f"{_which(tag)} send to rank {peer}")
            for peer, buffer in sends
        ]
        return _Works(group, outgoing), _Works(group, incoming)

    def close(self) -> None:
        """Leave the group."""
        self._group.close()


def _which(tag: int) -> str:
    return f"microbatch {tag % TAGS_PER_STEP}:"
