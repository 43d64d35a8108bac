"""The rank that everybody waits for is blamed, not the ranks that wait."""

import pytest

from actors.agent import Home, Sighting
from actors.blame import Known, culprits, error_of
from actors.worker import Status
from disagg_train.errors import Cause, DataError, RankError

BUSY = Status("recv_forward vision->language 1", "", is_busy=True)
COMPUTES = Status("forward vision 1", "", is_busy=True)
IDLE = Status("", "", is_busy=False)


def known(rank: int, status: Status | None = IDLE, death: str = "", state: str = "S") -> Known:
    group = "encoders" if rank < 2 else "language"
    home = Home("node", "192.0.2.1", 100 + rank, 3, 4)
    return Known(group, rank % 2, home, status, death, Sighting(state, "forward vision 2"))


def failed(cause: Cause) -> Status:
    return Status(BUSY.at, "Traceback\nBoundaryError: gone", is_busy=False, failed=cause)


def places(ranks: list[Known]) -> list[tuple[str, int]]:
    return [(rank.group, rank.rank) for rank in culprits(ranks)]


def test_dead_stopped_and_raising_ranks_are_blamed_in_this_order() -> None:
    stopped, raised = known(1, None, state="T"), known(0, failed("raised"))
    assert places([raised, stopped, known(2, BUSY), known(3, None, "killed")]) == [
        ("language", 1),
        ("encoders", 1),
        ("encoders", 0),
    ]


def test_a_rank_that_is_slow_to_answer_is_not_blamed_for_a_death() -> None:
    ranks = [known(0, None, state="R"), known(1, None, "killed"), known(2, BUSY)]
    assert places(ranks) == [("encoders", 1)]
    assert places([ranks[0], known(1, BUSY), known(2, failed("peer"))]) == [("encoders", 0)]


def test_a_rank_on_a_node_that_cannot_be_seen_is_lost() -> None:
    assert places([known(0, None, state=""), known(1, None, "killed")]) == [
        ("encoders", 1),
        ("encoders", 0),
    ]


@pytest.mark.parametrize("cause", ["peer", "collective"])
def test_who_has_not_failed_is_what_the_others_waited_for(cause: Cause) -> None:
    ranks = [known(0, failed(cause)), known(1, COMPUTES), known(2, failed(cause)), known(3, IDLE)]
    assert culprits(ranks) == [ranks[1]]


def test_where_nobody_failed_the_rank_that_does_not_wait_is_behind() -> None:
    ranks = [known(0, COMPUTES), known(1, BUSY), known(2, BUSY), known(3, BUSY)]
    assert culprits(ranks) == [ranks[0]]


@pytest.mark.parametrize("status", [BUSY, COMPUTES])
def test_nobody_is_blamed_where_all_do_the_same(status: Status) -> None:
    assert culprits([known(rank, status) for rank in range(4)]) == []


def test_an_error_that_only_followed_gives_way_to_the_cause() -> None:
    met = RankError("waited 5 s", "language", 0, cause="peer")
    found = error_of(met, [known(1, None, state="T")])
    assert isinstance(found, RankError)
    assert (found.group, found.rank, found.cause) == ("encoders", 1, "hung")
    assert found.op == "forward vision 2", "its beacon shows it still"
    assert "its process is stopped" in str(found)


def test_the_error_of_a_blamed_rank_stays() -> None:
    met = RankError("the actor died", "encoders", 1, cause="died")
    assert error_of(met, [known(0, None), known(1, None, "killed")]) is met


def test_a_users_mistake_stays_what_it_is() -> None:
    met = DataError("sample 5 is too long")
    assert error_of(met, [known(0, failed("raised"))]) is met


def test_a_condition_has_the_op_and_the_stack_of_its_rank() -> None:
    conditions = [
        known(rank, status).condition for rank, status in enumerate((BUSY, COMPUTES, None))
    ]
    assert [each.condition for each in conditions] == ["waiting", "working", "silent"]
    assert [each.op for each in conditions] == [BUSY.at, COMPUTES.at, "forward vision 2"]
    assert conditions[0].pid == 100
