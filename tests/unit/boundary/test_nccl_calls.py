"""What the GPU transport asks of NCCL, held against a fake that matches messages as NCCL does."""

import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from unittest.mock import Mock

import pytest
import torch
from torch.distributed import TCPStore

from disagg_train.boundary import nccl as nccl_file
from disagg_train.boundary.nccl import NcclGroup
from disagg_train.boundary.nccl_transport import NcclTransport
from disagg_train.boundary.transport import TAGS_PER_STEP
from disagg_train.boundary.watchdog import Watchdog
from disagg_train.errors import BoundaryError
from tests.unit.boundary.fake_nccl import Fabric, NcclError, install
from tests.unit.boundary.gloo_ranks import on_each_rank

_NAME = "vision->language/forward/e3"
_CPU = torch.device("cpu")
_PLACES = (4, 7)


@pytest.fixture
def fabric(monkeypatch: pytest.MonkeyPatch) -> Fabric:
    return install(monkeypatch)


def _join(
    store: TCPStore,
    place: int,
    places: Sequence[int] = _PLACES,
    deadline_s: float = 20.0,
    watchdog: Watchdog | None = None,
    peers: Sequence[int] | None = None,
) -> NcclGroup:
    watchdog = watchdog or Watchdog()
    return NcclGroup(_NAME, store, places, place, _CPU, deadline_s, watchdog, peers)


def _alone(watchdog: Watchdog | None = None) -> NcclGroup:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return _join(store, 0, (0,), watchdog=watchdog)


def test_one_unique_id_is_made_and_handed_round_under_a_name_with_the_epoch(
    fabric: Fabric,
) -> None:
    def run(place: int, store: TCPStore) -> bytes:
        _join(store, place)
        return store.get(f"nccl/{_NAME}/id")

    published = on_each_rank(_PLACES, run)
    assert len(fabric.unique_ids) == 1
    assert {bytes.fromhex(text.decode()) for text in published} == set(fabric.unique_ids)


def test_a_rank_that_does_not_come_is_named_at_the_deadline(fabric: Fabric) -> None:
    del fabric
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    begin = time.monotonic()
    with pytest.raises(BoundaryError, match=re.escape(f"{_NAME}: rank 4 waited 0.5 s")) as caught:
        _join(store, 4, (4, 7, 9), deadline_s=0.5)
    assert "the ranks [7, 9] of (4, 7, 9) did not join" in str(caught.value)
    assert time.monotonic() - begin < 10.0


def test_every_pair_that_may_talk_meets_at_setup_and_no_other(fabric: Fabric) -> None:
    peers = {0: (2,), 1: (2,), 2: (0, 1)}
    on_each_rank((0, 1, 2), lambda p, s: _join(s, p, (0, 1, 2), peers=peers[p]) and None)
    met = {rank: {call[1] for call in calls} for rank, calls in fabric.calls.items()}
    assert met == {0: {2}, 1: {2}, 2: {0, 1}}


def test_messages_reach_the_peer_by_its_rank_in_the_communicator(fabric: Fabric) -> None:
    def run(place: int, store: TCPStore) -> list[float]:
        transport = NcclTransport(_join(store, place))
        rows_TD, there = torch.full((2, 3), float(place)), _PLACES[place == 4]
        received_TD = torch.empty(2, 3)
        sends, receives = transport.start([(there, rows_TD)], [(there, received_TD)], 1)
        receives.wait()
        sends.wait()
        return received_TD.unique().tolist()

    assert on_each_rank(_PLACES, run) == [[7.0], [4.0]]
    assert fabric.calls[0][-2:] == [("send", 1, 6, 7), ("recv", 1, 6, 7)]
    assert fabric.calls[1][-2:] == [("send", 0, 6, 7), ("recv", 0, 6, 7)]


def test_the_order_of_starts_matches_messages(fabric: Fabric) -> None:
    del fabric

    def run(place: int, store: TCPStore) -> list[float]:
        transport = NcclTransport(_join(store, place))
        found = []
        for microbatch, rows in enumerate((2, 0, 5)):
            rows_TD = torch.full((rows, 2), float(microbatch))
            if place == 4:
                transport.start([(7, rows_TD)], [], microbatch)[0].wait()
            else:
                transport.start([], [(4, rows_TD.fill_(-1.0))], microbatch)[1].wait()
                found += rows_TD[:, 0].tolist()
        return found

    assert on_each_rank(_PLACES, run)[1] == [0.0] * 2 + [2.0] * 5


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (torch.float32, 7),
        (torch.bfloat16, 9),
        (torch.float16, 6),
        (torch.float8_e4m3fn, 1),
        (torch.float8_e5m2, 1),
    ],
)
def test_every_precision_goes_as_nccl_calls_it(
    fabric: Fabric, dtype: torch.dtype, kind: int
) -> None:
    def run(place: int, store: TCPStore) -> bool:
        transport = NcclTransport(_join(store, place))
        rows_TD = torch.arange(6).reshape(2, 3).to(dtype)
        if place == 4:
            transport.start([(7, rows_TD)], [], 0)[0].wait()
            return True
        received_TD = torch.empty(2, 3, dtype=dtype)
        transport.start([], [(4, received_TD)], 0)[1].wait()
        return torch.equal(received_TD.float(), rows_TD.float())

    assert all(on_each_rank(_PLACES, run))
    assert fabric.calls[0][-1] == ("send", 1, 6, kind)


def test_what_nccl_would_send_wrongly_is_refused(fabric: Fabric) -> None:
    del fabric
    transport = NcclTransport(_alone())
    with pytest.raises(BoundaryError, match=r"shape \(2, 3\).*not contiguous.*contiguous\(\)"):
        transport.start([(0, torch.empty(3, 2).T)], [], 0)
    with pytest.raises(BoundaryError, match=r"cannot send torch.complex64; use one of \['bfloat16"):
        transport.start([(0, torch.empty(2, dtype=torch.complex64))], [], 0)


def test_an_exchange_without_rows_asks_nccl_for_nothing(fabric: Fabric) -> None:
    transport = NcclTransport(_alone())
    for pending in transport.start([(0, torch.empty(0, 3))], [(0, torch.empty(0, 3))], 0):
        pending.wait()
    assert not fabric.calls


def test_a_refused_message_leaves_no_group_open(fabric: Fabric) -> None:
    group = _alone()
    with pytest.raises(ValueError, match="not in tuple"):
        group.exchange([(5, torch.ones(1))], [])
    assert fabric.open.depth == 0


def test_streams_are_ordered_around_the_messages(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    del fabric
    stream = Mock(handle=1)
    monkeypatch.setattr(nccl_file, "SideStream", lambda device: stream)
    group = _alone()
    monkeypatch.setattr(group, "exchange", stream.exchange)
    rows_TD = torch.ones(2, 3)
    sends, _ = NcclTransport(group).start([(0, rows_TD)], [], 0)
    sends.wait()
    calls = [name for name, _, _ in stream.mock_calls if "query" not in name]
    in_order = ["follow", "exchange", "keep", "mark", "mark_current", "hold_back_current"]
    assert calls == in_order
    assert stream.hold_back_current.call_args.args == (stream.mark.return_value,)


def test_a_failure_is_raised_at_the_next_start_and_wait_and_names_the_exchange(
    fabric: Fabric,
) -> None:
    watchdog = Watchdog(poll_s=0.01)
    group = _alone(watchdog)
    transport = NcclTransport(group)
    mark = Mock(query=Mock(return_value=False))
    group.stream = Mock(handle=0, mark=Mock(return_value=mark))
    sends, _ = transport.start([(0, torch.ones(1, 2))], [], 5 * TAGS_PER_STEP + 3)
    fabric.broken = True
    _until(lambda: bool(fabric.aborted))
    for raises in (sends.wait, lambda: transport.start([(0, torch.ones(1))], [], 0)):
        with pytest.raises(BoundaryError, match=f"{_NAME}: microbatch 3, send to rank 0: .*REMOTE"):
            raises()


def test_leaving_aborts_once_and_a_group_that_was_left_says_so(fabric: Fabric) -> None:
    group = _alone()
    group.close()
    group.close()
    assert fabric.aborted == [0]
    with pytest.raises(BoundaryError, match="rank 0 left this group"):
        group.exchange([(0, torch.ones(1))], [])


def test_a_communicator_that_cannot_be_made_ends_the_join_with_its_reason(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise NcclError("NCCL_ERROR_INVALID_USAGE")

    monkeypatch.setattr(sys.modules["cupy.cuda.nccl"], "NcclCommunicator", refuse)
    with pytest.raises(BoundaryError, match=f"{_NAME}: rank 0 could not join: NCCL_ERROR_INVALID"):
        _alone()
    assert not fabric.aborted


def test_a_peer_that_hangs_while_it_joins_ends_the_join_at_its_deadline(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    del fabric
    release = threading.Event()

    def hang(*_: object) -> None:
        release.wait(20.0)

    monkeypatch.setattr(sys.modules["cupy.cuda.nccl"], "NcclCommunicator", hang)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(BoundaryError, match=r"could not join: no answer from one of .* in 0.2 s"):
        _join(store, 0, (0,), deadline_s=0.2)
    release.set()


def _until(true: Callable[[], bool], deadline_s: float = 5.0) -> None:
    end_s = time.monotonic() + deadline_s
    while not true():
        assert time.monotonic() < end_s, "nothing happened before the deadline"
        time.sleep(0.01)
