"""Where a rank meets the others: its group's default world, and the job-wide control group."""

from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore

from disagg_train.boundary.gloo import GlooGroup
from disagg_train.boundary.open import open_transport
from disagg_train.boundary.transport import Transport
from disagg_train.boundary.watchdog import Watchdog
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
        saving_s: deadline of writing a checkpoint, for which all ranks of a group wait.

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
        saving_s: float,
    ) -> None:
        self.rendezvous, self.placement, self.group, self.rank = rendezvous, placement, group, rank
        self.device, self.deadline_s, self._saving_s = device, deadline_s, saving_s
        self.place = placement.places(group)[rank]
        timeout = timedelta(seconds=deadline_s)
        self.store = TCPStore(rendezvous.host, rendezvous.port, is_master=False, timeout=timeout)
        self.watchdog = Watchdog()
        self.control = self.join("control", tuple(range(placement.world_size)))
        try:
            self._init_default_world(timeout)
        except BoundaryError:
            self.control.close()
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
        # For the thread that writes checkpoints, whose collectives must not mix with a step's.
        self.saving = dist.new_group(backend="gloo", timeout=timeout)
        dist.set_timeout(timedelta(seconds=self._saving_s), self.saving)

    def join(self, name: str, places: tuple[int, ...]) -> GlooGroup:
        """Open a private group on the CPU among global ranks; all of them must call this."""
        return GlooGroup(self._unique(name), self.store, places, self.place, self.deadline_s)

    def transport(
        self, name: str, places: Sequence[int], peers: Sequence[int] | None = None
    ) -> Transport:
        """Open a way for this rank's tensors among global ranks; all of them must call this.

        Args:
            name: unique in the job; the epoch is added here.
            places: global ranks of the members.
            peers: members that this rank may talk to, all others where not given.
        """
        device, deadline_s = self.device.torch_device, self.deadline_s
        unique = self._unique(name)
        return open_transport(
            unique, self.store, places, self.place, device, deadline_s, self.watchdog, peers
        )

    def _unique(self, name: str) -> str:
        return f"{name}/e{self.rendezvous.epoch}"

    def close(self) -> None:
        """Leave all groups."""
        self.watchdog.close()
        self.control.close()
        dist.destroy_process_group()
