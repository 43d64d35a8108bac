"""Where a rank meets the others: its group's default world, and the job-wide control group."""

from datetime import timedelta

import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore

from disagg_train.boundary.gloo import GlooGroup
from disagg_train.device import Device
from disagg_train.engine.setup import Rendezvous
from disagg_train.errors import BoundaryError
from disagg_train.topology.placement import Placement


class World:
    """The process groups of one rank that belong to no single module.

    Args:
        rendezvous: where to meet.
        placement: the job's groups.
        group: this rank's actor group.
        rank: this rank inside its group.
        device: what it computes on.
        deadline_s: of joining, and of any collective.

    Raises:
        BoundaryError: somebody does not arrive before the deadline.
    """

    def __init__(
        self,
        rendezvous: Rendezvous,
        placement: Placement,
        group: str,
        rank: int,
        device: Device,
        deadline_s: float,
    ) -> None:
        self.rendezvous, self.placement, self.group, self.rank = rendezvous, placement, group, rank
        self.device, self.deadline_s = device, deadline_s
        self.place = placement.places(group)[rank]
        timeout = timedelta(seconds=deadline_s)
        self.store = TCPStore(rendezvous.host, rendezvous.port, is_master=False, timeout=timeout)
        self._init_default_world(timeout)
        everyone = range(placement.world_size)
        try:
            self.control = self.join("control", tuple(everyone))
        except BoundaryError:
            dist.destroy_process_group()
            raise

    def _init_default_world(self, timeout: timedelta) -> None:
        prefix = f"world/{self.group}/e{self.rendezvous.epoch}"
        try:
            dist.init_process_group(
                self.device.collective_backend,
                store=PrefixStore(prefix, self.store),
                rank=self.rank,
                world_size=self.placement.group_ranks[self.group],
                timeout=timeout,
            )
        except RuntimeError as error:
            raise BoundaryError(
                f"group {self.group!r} rank {self.rank} could not join its group: {error}"
            ) from None

    def join(self, name: str, places: tuple[int, ...]) -> GlooGroup:
        """Open a private group among global ranks; all of them must call this."""
        unique = f"{name}/e{self.rendezvous.epoch}"
        return GlooGroup(unique, self.store, places, self.place, self.deadline_s)

    def close(self) -> None:
        """Leave all groups."""
        self.control.close()
        dist.destroy_process_group()
