"""Rendezvous made by the driver: it hosts the job's store, so no rank's death takes it down."""

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
