"""What an op waited for, and what kept that rank, is found from spans alone."""

import pytest

from disagg_train.metrics.records import RankReport, Span
from disagg_train.metrics.trace import START_STEP
from disagg_train.report.blame import BETWEEN, NOT_BEGUN, Blame
from disagg_train.report.step_summary import RankSummary, causes_in_words, summarise
from disagg_train.report.waits import Senders, StepTimeline, timeline_of
from disagg_train.schedule.graph import Edge, StageGraph, StageNode

GRAPH = StageGraph(
    {
        "vision": StageNode("vision", "encoders", ((0,), (1,))),
        "language": StageNode("language", "language", ((2, 3),)),
    },
    (Edge("vision", "language"),),
)
EDGE = "vision->language"
NAMES = {0: "encoders/0", 1: "encoders/1", 2: "language/0", 3: "language/1"}


def _step(*rows: list[tuple[str, float, float]], senders: Senders | None = None) -> StepTimeline:
    reports = [
        RankReport(place, spans=[Span(name, "", "", begin, end) for name, begin, end in row])
        for place, row in enumerate(rows)
    ]
    return timeline_of(1, reports, GRAPH, senders or {})


def test_a_receive_waits_for_the_last_sender() -> None:
    send = f"send_forward {EDGE} 0"
    step = _step(
        [(send, 4, 5)], [(send, 6, 8)], [(f"recv_forward {EDGE} 0", 4, 9)], [("agree", 4, 9)]
    )
    (received,) = step.rows[2]
    assert (received.wait_s, received.waits_for, received.work_s) == (4, 1, 1)


def test_a_receive_waits_only_for_ranks_that_send_to_it() -> None:
    send = f"send_forward {EDGE} 0"
    step = _step(
        [(send, 4, 5)],
        [(send, 6, 8)],
        [(f"recv_forward {EDGE} 0", 4, 9)],
        senders={(EDGE, False, 0): {2: [0]}},
    )
    assert (step.rows[2][0].wait_s, step.rows[2][0].waits_for) == (1, 0)


def test_a_rank_that_comes_early_to_a_pass_waits_for_its_partner() -> None:
    step = _step([], [], [("forward language 0", 1, 6)], [("forward language 0", 3, 6)])
    assert (step.rows[2][0].wait_s, step.rows[2][0].waits_for) == (2, 3)
    assert (step.rows[3][0].wait_s, step.rows[3][0].waits_for) == (0, None)


def test_a_pass_does_not_wait_longer_than_its_partner_was_quicker() -> None:
    step = _step([], [], [("forward language 0", 1, 6)], [("forward language 0", 3, 7)])
    assert step.rows[2][0].wait_s == 1


def test_dp_ranks_do_not_wait_for_each_other_in_a_pass() -> None:
    step = _step([("forward vision 0", 1, 6)], [("forward vision 0", 3, 6)])
    assert step.rows[0][0].waits_for is None


def test_the_start_and_the_agreement_wait_for_the_last_rank() -> None:
    for name in (START_STEP, "agree"):
        step = _step([(name, 0, 5)], [(name, 2, 5)], [(name, 4, 5)])
        assert [row[0].wait_s for row in step.rows.values()] == [4, 2, 0]
        assert [row[0].waits_for for row in step.rows.values()] == [2, 2, None]


def test_a_sync_waits_for_the_last_rank_to_begin_it() -> None:
    alone = _step([("grad_sync vision", 0, 5)], [("grad_sync vision", 3, 5)])
    assert alone.rows[0][0].wait_s == 3
    begun = [("start_grad_sync vision", 0, 1), ("grad_sync vision", 2, 5)]
    late = [("start_grad_sync vision", 3, 4), ("grad_sync vision", 4, 5)]
    step = _step(begun, late)
    assert (step.rows[0][1].wait_s, step.rows[0][1].waits_for) == (2, 1)


def test_a_third_send_waits_for_the_first_to_be_received() -> None:
    sends = [(f"send_forward {EDGE} {m}", m, m + 1) for m in range(2)]
    step = _step([*sends, (f"send_forward {EDGE} 2", 2, 6)], [], [(f"recv_forward {EDGE} 0", 0, 5)])
    assert (step.rows[0][2].wait_s, step.rows[0][2].waits_for) == (3, 2)


def test_the_cause_of_a_wait_is_who_works_at_the_end_of_the_chain() -> None:
    step = _step(
        [("forward vision 0", 0, 7), (f"send_forward {EDGE} 0", 7, 8)],
        [(f"recv_backward {EDGE} 0", 0, 12)],
        [
            (f"recv_forward {EDGE} 0", 0, 8),
            ("forward language 0", 8, 10),
            (f"send_backward {EDGE} 0", 10, 11),
        ],
    )
    waited = step.rows[1][0]
    assert (waited.wait_s, waited.waits_for) == (11, 2)
    assert Blame(step).of_wait(waited) == {
        (0, "ran forward of vision"): 7,
        (0, f"sent over {EDGE}"): 1,
        (2, "ran forward of language"): 2,
        (2, f"sent gradients over {EDGE}"): 1,
    }


def test_time_without_ops_is_a_cause_too() -> None:
    step = _step([("agree", 0, 9)], [("forward vision 0", 2, 4), ("agree", 7, 9)])
    causes = Blame(step).of_wait(step.rows[0][0])
    assert causes == {(1, NOT_BEGUN): 2, (1, "ran forward of vision"): 2, (1, BETWEEN): 3}


def test_all_of_a_ranks_time_is_accounted_for() -> None:
    step = _step(
        [("forward vision 0", 0, 7), (f"send_forward {EDGE} 0", 7, 8), ("agree", 11, 12)],
        [("agree", 1, 12)],
        [(f"recv_forward {EDGE} 0", 0, 8), ("forward language 0", 8, 10), ("agree", 10.5, 12)],
    )
    for rank in summarise(step, NAMES).ranks:
        assert rank.busy_s + rank.idle_s == pytest.approx(step.length_s)
        assert sum(spent for _, spent in rank.causes) == pytest.approx(rank.idle_s)


def test_a_summary_names_the_slowest_rank_and_why_the_idlest_idled() -> None:
    step = _step(
        [("forward vision 0", 0, 7), (f"send_forward {EDGE} 0", 7, 8), ("agree", 8, 10)],
        [("agree", 0, 10)],
        [(f"recv_forward {EDGE} 0", 0, 8), ("agree", 9, 10)],
    )
    summary = summarise(step, NAMES)
    assert "Slowest rank: encoders/0, at work 90%" in summary.sentence
    assert "encoders/1 idled most, 90%: 7 s while encoders/0 ran forward of vision" in (
        summary.sentence
    )
    assert summary.ranks[0].held_up_s == pytest.approx(7 + 1 + 8)
    assert "for microbatch 0 from encoders/0" in summary.waits[1].text


def test_causes_are_added_up_over_ranks_that_did_the_same() -> None:
    rank = RankSummary(
        2, 0, 0, 0, 0, 10.0, 0, [((0, "ran"), 4.0), ((1, "ran"), 3.0), ((3, "sent"), 3.0)]
    )
    assert causes_in_words(rank, NAMES) == (
        "7 s while encoders/0 and 1 more ran; 3 s while language/1 sent"
    )


def test_a_step_without_spans_has_no_length() -> None:
    assert summarise(_step([], []), NAMES).sentence == "Step 1 recorded nothing."
