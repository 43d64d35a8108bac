"""Rendezvous made by the driver: it hosts the job's store, so no rank's death takes it down."""

import socket

from torch.distributed import TCPStore

from disagg_train.engine.setup import Rendezvous


class RendezvousHost:
    """A store that lives as long as this object.

    Args:
        host: address under which the ranks reach this process.
    """

    def __init__(self, host: str) -> None:
        self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        self._host, self._epoch = host, 0

    def next_epoch(self) -> Rendezvous:
        """Return a rendezvous whose names no earlier communicator used."""
        self._epoch += 1
        return Rendezvous(self._host, self._store.port, self._epoch)


def own_address(towards: str) -> str:
    """Return the address of this machine that ``towards`` reaches it under."""
    if towards.startswith("127."):
        return towards
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((towards, 1))
        return str(probe.getsockname()[0])
