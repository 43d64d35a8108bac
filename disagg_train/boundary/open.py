"""Chooses a boundary's transport: gloo between CPUs, NCCL between GPUs."""

from collections.abc import Sequence

import torch
from torch.distributed import Store

from disagg_train.boundary.gloo import GlooGroup, GlooTransport
from disagg_train.boundary.nccl import NcclGroup
from disagg_train.boundary.nccl_transport import NcclTransport
from disagg_train.boundary.transport import Transport
from disagg_train.boundary.watchdog import Watchdog


def open_transport(
    name: str,
    store: Store,
    places: Sequence[int],
    place: int,
    device: torch.device,
    deadline_s: float,
    watchdog: Watchdog,
    peers: Sequence[int] | None = None,
) -> Transport:
    """Join a group of ranks that exchange messages; all of them must call this.

    Args:
        name: unique in the job, the epoch included.
        store: the job's store.
        places: global ranks of the members, the same list on every member.
        place: global rank of this process.
        device: where the messages' buffers live.
        deadline_s: how long joining, or any one wait, may take.
        watchdog: of this process; it ends NCCL exchanges that hang.
        peers: members that this one may talk to; NCCL connects to them now. All others
            where not given. If a names b, then b must name a.

    Raises:
        BoundaryError: a member does not arrive before the deadline.
        ConfigError: the GPU's transport is not installed, or not for torch's NCCL.
    """
    if device.type == "cpu" or len(places) == 1:  # a rank alone sends nothing: it needs no CuPy
        return GlooTransport(GlooGroup(name, store, places, place, deadline_s))
    return NcclTransport(NcclGroup(name, store, places, place, device, deadline_s, watchdog, peers))
