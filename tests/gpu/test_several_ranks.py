"""NCCL boundaries between processes; on one GPU they share it, so nothing here times overlap."""

import json
from collections.abc import Callable

import pytest

from tests.gpu import runs

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(420)]

_SLACK_S = 30.0
_LEAST_RATIO = 1e-4  # of a copy on the GPU: a sign of life, ranks may share one GPU

Spawn = Callable[..., list]


def test_nccl_brings_what_gloo_brings(spawn: Spawn) -> None:
    assert spawn(runs.parity, 4, deadline_s=360.0) == [[]] * 4


def test_streams_are_ordered_and_the_host_runs_ahead(spawn: Spawn) -> None:
    sender, receiver = spawn(runs.stream_order, 2)
    assert sender == (True, 9.0, 9.0)
    assert receiver[1:] == (14.0, 14.0)


def test_a_step_makes_the_host_wait_for_nothing(spawn: Spawn) -> None:
    assert spawn(runs.steady_state, 2) == [True, True]


def test_a_peer_that_never_sends_is_named_and_the_next_epoch_works(spawn: Spawn) -> None:
    (_, _, first), (text, took_s, second) = spawn(runs.hang, 2)
    what = f"microbatch {runs.MICROBATCH}, receive from rank 0"
    assert text.startswith(f"vision->language/forward/e1: {what}: not done {runs.HANG_S:g} s")
    assert runs.HANG_S <= took_s < runs.HANG_S + _SLACK_S
    assert (first, second) == (11.0, 10.0)


def test_a_peer_whose_process_ended_ends_the_wait(spawn: Spawn) -> None:
    _, (text, took_s) = spawn(runs.dead_peer, 2)
    assert text.startswith("vision->language/forward/e1: ")
    assert took_s < runs.HANG_S + _SLACK_S


def test_a_rebuilt_group_never_meets_an_old_message(spawn: Spawn) -> None:
    assert spawn(runs.rebuild, 2) == [11.0, 10.0]


def test_messages_move_at_a_share_of_a_copy(
    spawn: Spawn, record_property: Callable[[str, object], None]
) -> None:
    (messages, copies), _ = spawn(runs.bandwidth, 2)
    figures = {"message_gb_per_s": messages, "copy_gb_per_s": copies, "ratio": messages / copies}
    for name, value in figures.items():
        record_property(name, value)
    print(json.dumps(figures))
    assert figures["ratio"] > _LEAST_RATIO
