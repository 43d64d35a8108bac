"""Where the ranks of a job meet."""

import socket
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from actors import rendezvous
from actors.rendezvous import RAY_PORTS, RendezvousHost, listen_clear_of_ray
from disagg_train.errors import ClusterError


def test_ranks_meet_at_the_store_under_a_new_name_each_time() -> None:
    host = RendezvousHost("127.0.0.1")
    first, second = host.next_epoch(), host.next_epoch()
    assert (first.epoch, second.epoch) == (1, 2)
    store = TCPStore(first.host, first.port, is_master=False, timeout=timedelta(seconds=20))
    store.set("key", "value")
    assert store.get("key") == b"value"


def test_a_port_that_rays_workers_may_want_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = _free_port_of_ray()
    offered = iter([wanted, wanted, 0])

    def listen() -> socket.socket:
        return socket.create_server(("127.0.0.1", next(offered)), reuse_port=True)

    monkeypatch.setattr(rendezvous, "_listen", listen)
    with listen_clear_of_ray() as found:
        assert found.getsockname()[1] not in RAY_PORTS
    assert not list(offered)


def test_a_machine_that_gives_out_rays_ports_only_is_told_what_to_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = _free_port_of_ray()
    monkeypatch.setattr(rendezvous, "_TRIES", 3)
    monkeypatch.setattr(
        rendezvous,
        "_listen",
        lambda: socket.create_server(("127.0.0.1", port), reuse_port=True),
    )
    with pytest.raises(ClusterError, match="ip_local_port_range"):
        listen_clear_of_ray()


def _free_port_of_ray() -> int:
    for port in RAY_PORTS:
        try:
            socket.create_server(("127.0.0.1", port), reuse_port=True).close()
        except OSError:
            continue
        return port
    pytest.skip("every port of Ray's is taken here")
