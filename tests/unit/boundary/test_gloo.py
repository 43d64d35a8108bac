"""Hangs and mismatches end in an error that names who and what, within the deadline."""

import time

import pytest
import torch
from torch.distributed import TCPStore

from disagg_train.boundary.gloo import GlooGroup, GlooTransport
from disagg_train.errors import BoundaryError
from tests.unit.boundary.gloo_ranks import join, on_each_rank


def test_a_peer_that_never_arrives_ends_the_join_at_its_deadline() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    begin = time.monotonic()
    with pytest.raises(BoundaryError, match=r"lonely.*rank 0.*\(0, 1\)"):
        GlooGroup("lonely", store, (0, 1), 0, deadline_s=1.0)
    assert time.monotonic() - begin < 10.0


def test_a_message_that_never_comes_names_the_peer_and_the_boundary() -> None:
    def run(place: int, store: TCPStore) -> str:
        group = GlooGroup("vision->language/forward", store, (4, 7), place, 2.0)
        if place == 7:
            _, receives = GlooTransport(group).start([], [(4, torch.empty(2, 3))], 5)
            with pytest.raises(BoundaryError) as caught:
                receives.wait()
            return str(caught.value)
        time.sleep(3.0)
        return ""

    _, message = on_each_rank((4, 7), run)
    assert "vision->language/forward" in message
    assert "receive 5 from rank 4" in message


def test_a_group_rebuilt_under_another_name_works_after_a_timeout() -> None:
    def run(place: int, store: TCPStore) -> float:
        broken = GlooGroup("wire/e1", store, (0, 1), place, 1.0)
        if place == 1:
            _, receives = GlooTransport(broken).start([], [(0, torch.empty(1))], 0)
            with pytest.raises(BoundaryError):
                receives.wait()
        broken.close()
        total = torch.ones(1) * (place + 1)
        join("wire/e2", store, (0, 1), place).all_reduce(total)
        return float(total)

    assert on_each_rank((0, 1), run) == [3.0, 3.0]
