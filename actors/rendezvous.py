"""Rendezvous made by the driver: it hosts the job's store, so no rank's death takes it down."""

import socket

from torch.distributed import TCPStore

from disagg_train.engine.setup import Rendezvous
from disagg_train.errors import ClusterError

RAY_PORTS = range(10002, 20000)
"""Where Ray's workers listen; one that finds its port taken does not start."""
_TRIES, _BACKLOG = 1000, 4096


class RendezvousHost:
    """A store that lives as long as this object.

    Args:
        host: address under which the ranks reach this process.
    """

    def __init__(self, host: str) -> None:
        self._store = _store(host)
        self._host, self._epoch = host, 0

    def next_epoch(self) -> Rendezvous:
        """Return a rendezvous whose names no earlier communicator used."""
        self._epoch += 1
        return Rendezvous(self._host, self._store.port, self._epoch)


def _store(host: str) -> TCPStore:
    listening = listen_clear_of_ray()
    return TCPStore(
        host,
        listening.getsockname()[1],
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listening.detach(),
    )


def listen_clear_of_ray() -> socket.socket:
    """Return a socket that listens on a free port which none of Ray's workers wants.

    Most systems give out ports from 32768 on by themselves; some are set to give out others.

    Raises:
        ClusterError: there is none.
    """
    passed_over = []
    try:
        for _ in range(_TRIES):
            found = _listen()
            if found.getsockname()[1] not in RAY_PORTS:
                return found
            passed_over.append(found)
    finally:
        for each in passed_over:
            each.close()
    raise ClusterError(
        f"all free ports of this machine are among Ray's, {RAY_PORTS[0]} to {RAY_PORTS[-1]}; set "
        f"the sysctl net.ipv4.ip_local_port_range to 32768 60999"
    )


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", 0), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True
        )
    return socket.create_server(("", 0), backlog=_BACKLOG)
