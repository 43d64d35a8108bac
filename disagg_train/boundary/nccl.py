"""NCCL communicators between GPUs, made through CuPy. The only file that imports CuPy.

How communicators of one GPU are ordered: one host thread launches them all, ours and
torch's, in the order of the schedule; NCCL_LAUNCH_ORDER_IMPLICIT=1 makes the GPU keep to it.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import Store

from disagg_train.boundary.transport import Message
from disagg_train.boundary.watchdog import Watchdog, bounded
from disagg_train.boundary.wire_types import NCCL_NAMES
from disagg_train.device import NcclVersion, SideStream, torch_nccl_version, use, version_text
from disagg_train.errors import BoundaryError, ConfigError

_LEAVE_S = 10.0
_SETTLE_S = 2.0
_LAUNCH_S = 1.0


def _cupy_nccl() -> Any:
    """Import CuPy's NCCL, after torch, so that both load the library that torch brings."""
    try:
        from cupy.cuda import nccl
    except ImportError as error:
        nccl, why = None, str(error)
    else:
        why = "" if nccl.available else "this CuPy finds no NCCL"
    if why:
        raise ConfigError(
            f"boundaries between GPUs need CuPy's NCCL: {why}; install 'disagg_train[cu13]' "
            f"(or [cu12] with a CUDA-12 torch), or set device: cpu"
        )
    return nccl


def cupy_nccl_version() -> NcclVersion:
    """Return the version of the NCCL that CuPy loaded; needs no GPU.

    Raises:
        ConfigError: there is no CuPy, or it has no NCCL.
    """
    code = int(_cupy_nccl().get_version())
    return code // 10000, code // 100 % 100, code % 100


def check_same_nccl() -> None:
    """Refuse two NCCLs in one process: their launches cannot be held in one order.

    Raises:
        ConfigError: CuPy and torch loaded different versions; says what to uninstall.
    """
    ours, theirs = cupy_nccl_version(), torch_nccl_version()
    if ours == theirs:
        return
    right = str(torch.version.cuda or "13").partition(".")[0]
    wrong = "12" if right == "13" else "13"
    raise ConfigError(
        f"CuPy loaded NCCL {version_text(ours)} and torch {version_text(theirs)}; they must be "
        f"the same. torch is built for CUDA {right}, so: pip uninstall cupy-cuda{wrong}x "
        f"nvidia-nccl-cu{wrong}; take other copies of libnccl.so.2 off LD_LIBRARY_PATH; then "
        f"pip install --force-reinstall --no-deps nvidia-nccl-cu{right} cupy-cuda{right}x"
    )


class NcclGroup:
    """An NCCL communicator among some global ranks of the job, with a stream of its own.

    The first of ``places`` makes the unique id; the job's store, which the driver hosts,
    hands it round. Then every pair of peers is connected, since a first contact in the
    middle of a step would block the host.

    Args:
        name: unique in the job; the epoch is part of it, so that a group that is rebuilt
            never meets an old message.
        store: the job's store.
        places: global ranks of the members, the same list on every member.
        place: global rank of this process.
        device: its GPU.
        deadline_s: how long joining may take, or a stream may stand still for a message.
        watchdog: of this process.
        peers: members that this one may talk to; all others where not given. If a names b,
            then b must name a.

    Raises:
        BoundaryError: a member does not arrive before the deadline.
        ConfigError: CuPy is missing, or holds another NCCL than torch.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        places: Sequence[int],
        place: int,
        device: torch.device,
        deadline_s: float,
        watchdog: Watchdog,
        peers: Sequence[int] | None = None,
    ) -> None:
        check_same_nccl()
        self._nccl, self._comm, self._launching = _cupy_nccl(), None, threading.Lock()
        self._name, self.place, self.places = name, place, tuple(places)
        self.device, self.deadline_s, self.watchdog = device, deadline_s, watchdog
        self.stream = SideStream(device)
        unique_id = self._meet(store)
        others = self.places if peers is None else sorted(set(peers))
        self._join(unique_id, [peer for peer in others if peer != place])
        watchdog.add(self)

    @property
    def name(self) -> str:
        """Boundary, direction and epoch."""
        return self._name

    def _meet(self, store: Store) -> bytes:
        """Wait until all members are here, and return the unique id."""
        prefix = f"nccl/{self.name}"
        if self.place == self.places[0]:
            store.set(f"{prefix}/id", self._nccl.get_unique_id().hex())
        store.set(f"{prefix}/here/{self.place}", "1")
        keys = {place: f"{prefix}/here/{place}" for place in self.places}
        try:
            store.wait(list(keys.values()), timedelta(seconds=self.deadline_s))
        except RuntimeError as error:
            missing = [place for place, key in keys.items() if not store.check([key])]
            raise BoundaryError(
                f"{self.name}: rank {self.place} waited {self.deadline_s:g} s and the ranks "
                f"{missing} of {self.places} did not join: {error}"
            ) from None
        return bytes.fromhex(store.get(f"{prefix}/id").decode())

    def _join(self, unique_id: bytes, peers: Sequence[int]) -> None:
        """Make the communicator and meet every peer; NCCL blocks in both, so bound them."""

        def connect() -> None:
            use(self.device)
            rank = self.places.index(self.place)
            self._comm = self._nccl.NcclCommunicator(len(self.places), unique_id, rank)
            self._warm_up(peers)

        why: object = f"no answer from one of {list(peers)} in {self.deadline_s:g} s"
        try:
            why = "" if bounded(connect, self.deadline_s) else why
        except Exception as error:
            why = error
        if why:
            _try(self.abort, _LEAVE_S)
            raise BoundaryError(f"{self.name}: rank {self.place} could not join: {why}")

    def _warm_up(self, peers: Sequence[int]) -> None:
        """Exchange one value with every peer."""
        if not peers:
            return
        mine = torch.full((1,), float(self.place), device=self.device)
        theirs = [torch.empty(1, device=self.device) for _ in peers]
        self.stream.follow()
        self.exchange([(peer, mine) for peer in peers], list(zip(peers, theirs, strict=True)))
        self.stream.finish()
        met = [int(value.item()) for value in theirs]
        if met != list(peers):
            raise BoundaryError(f"met the ranks {met} in place of {list(peers)}")

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message]) -> None:
        """Put one group of messages on the stream; they advance together, in any order.

        Raises:
            BoundaryError: this rank left the group, or NCCL refuses.
        """
        with self._launching, self._group() as comm:
            for peer, buffer in sends:
                comm.send(*self._arguments(peer, buffer))
            for peer, buffer in receives:
                comm.recv(*self._arguments(peer, buffer))

    @contextlib.contextmanager
    def _group(self) -> Iterator[Any]:
        """Open a group of messages and end it whatever happens, or it would swallow the next."""
        comm = self._comm
        if comm is None:
            self.watchdog.check()
            raise BoundaryError(f"{self.name}: rank {self.place} left this group")
        try:
            self._nccl.groupStart()
            try:
                yield comm
            finally:
                self._nccl.groupEnd()
        except RuntimeError as error:
            self.watchdog.check()
            raise BoundaryError(f"{self.name}: rank {self.place}: {error}") from None

    def _arguments(self, peer: int, buffer: Tensor) -> tuple[int, int, int, int, int]:
        """Return pointer, count, type, rank in the communicator, and stream."""
        kind = getattr(self._nccl, NCCL_NAMES[buffer.dtype])
        rank = self.places.index(peer)
        return buffer.data_ptr(), buffer.numel(), kind, rank, self.stream.handle

    def check_async_error(self) -> None:
        """Raise CuPy's error where the communicator broke; never blocks."""
        comm = self._comm
        if comm is not None:
            comm.check_async_error()

    def abort(self) -> None:
        """End all messages under way, from whatever thread; may block.

        A launch that runs is given a moment to end; one that hangs is what abort is for.
        """
        idle = self._launching.acquire(timeout=_LAUNCH_S)
        try:
            comm, self._comm = self._comm, None
            if comm is not None:
                use(self.device)
                comm.abort()
        finally:
            if idle:
                self._launching.release()

    def close(self) -> None:
        """Leave the group within seconds, whatever state it is in.

        Messages under way get a moment to arrive, unless something failed already. Not by
        ``destroy``, which would wait for them, and for the peers, without end.
        """
        failed = bool(self.watchdog.failure)
        self.watchdog.forget(self)
        if not failed and self._comm is not None:
            _try(self._settle, _SETTLE_S)
        _try(self.abort, _LEAVE_S)

    def _settle(self) -> None:
        use(self.device)
        self.stream.finish()


def _try(call: Callable[[], None], limit_s: float) -> None:
    """Call something whose failure changes nothing: the communicator is given up anyway."""
    with contextlib.suppress(RuntimeError):
        bounded(call, limit_s)
