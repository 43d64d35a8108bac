"""Hangs and mismatches end in an error that names who and what, within the deadline."""

import threading
import time

import pytest
import torch
from torch.distributed import HashStore, Store

from disagg_train.boundary.gloo import GlooGroup, GlooTransport
from disagg_train.boundary.transport import TAGS_PER_STEP
from disagg_train.errors import BoundaryError
from tests.unit.boundary.gloo_ranks import join, on_each_rank


def test_a_peer_that_never_arrives_ends_the_join_at_its_deadline() -> None:
    begin = time.monotonic()
    with pytest.raises(BoundaryError, match=r"lonely: rank 0.*\(0, 1\), \[1\] did not arrive"):
        GlooGroup("lonely", HashStore(), (0, 1), 0, deadline_s=1.0)
    assert time.monotonic() - begin < 10.0


def test_those_that_arrived_are_not_among_the_absent() -> None:
    def run(place: int, store: Store) -> str:
        with pytest.raises(BoundaryError) as caught:
            GlooGroup("wire/e1", store, (3, 5, 8, 9), place, deadline_s=1.0)
        return str(caught.value)

    for message in on_each_rank((3, 8), run):
        assert "[5, 9] did not arrive" in message


def test_a_message_that_never_comes_names_the_boundary_the_microbatch_and_the_peer() -> None:
    given_up = threading.Event()

    def run(place: int, store: Store) -> str:
        group = GlooGroup("vision->language/forward", store, (4, 7), place, 1.0)
        if place == 7:
            transport = GlooTransport(group)
            _, receives = transport.start([], [(4, torch.empty(2, 3))], 3 * TAGS_PER_STEP + 5)
            with pytest.raises(BoundaryError) as caught:
                receives.wait()
            given_up.set()
            return str(caught.value)
        assert given_up.wait(timeout=20)
        return ""

    _, message = on_each_rank((4, 7), run)
    assert "vision->language/forward: rank 7 in microbatch 5: receive from rank 4" in message


def test_a_peer_that_left_is_named_by_what_comes_after_it() -> None:
    def run(place: int, store: Store) -> str:
        group = join("vision->language/backward", store, (0, 1), place)
        if place == 1:
            group.close()
            return ""
        transport = GlooTransport(group)
        with pytest.raises(BoundaryError) as caught:
            for tag in (1, 2):  # the second is started on a connection that is known to be lost
                _, receives = transport.start([], [(1, torch.empty(2))], tag)
                receives.wait()
        with pytest.raises(BoundaryError, match="microbatch 2.* from rank 1"):
            transport.start([], [(1, torch.empty(2))], 2)[1].wait()
        return str(caught.value)

    message, _ = on_each_rank((0, 1), run)
    assert "microbatch 1" in message
    assert "from rank 1" in message


def test_a_group_rebuilt_under_another_name_works_after_a_timeout() -> None:
    def run(place: int, store: Store) -> float:
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


def test_a_message_of_an_earlier_epoch_is_never_met() -> None:
    """Same store, same ranks, same tag: only the epoch in the name tells the two apart."""
    sent = threading.Event()

    def run(place: int, store: Store) -> list[float]:
        old = join("wire/e1", store, (0, 1), place)
        if place == 0:
            undelivered, _ = GlooTransport(old).start([(1, torch.full((1,), 1.0))], [], 7)
            sent.set()
        assert sent.wait(timeout=20)
        new = join("wire/e2", store, (0, 1), place)
        if place == 0:
            GlooTransport(new).start([(1, torch.full((1,), 2.0))], [], 7)[0].wait()
            return []
        arrived = torch.zeros(1)
        GlooTransport(new).start([], [(0, arrived)], 7)[1].wait()
        return arrived.tolist()

    assert on_each_rank((0, 1), run) == [[], [2.0]]
