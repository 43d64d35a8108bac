"""Ops in words."""

import pytest

from disagg_train.schedule.ops import Op, OpKind, update_ops


@pytest.mark.parametrize(
    ("op", "words"),
    [
        (Op(OpKind.FORWARD, "vision", 3), "forward vision 3"),
        (Op(OpKind.SEND_BACKWARD, "", 0, "vision->language"), "send_backward vision->language 0"),
        (Op(OpKind.GRAD_SYNC, "vision"), "grad_sync vision"),
        (Op(OpKind.AGREE), "agree"),
    ],
)
def test_an_op_reads_as_kind_place_and_microbatch(op: Op, words: str) -> None:
    assert str(op) == words


def test_every_kind_is_compute_or_transfer_or_belongs_to_the_step() -> None:
    of_the_step = {OpKind.START_GRAD_SYNC, OpKind.GRAD_SYNC, OpKind.AGREE, OpKind.OPTIMIZER_STEP}
    for kind in OpKind:
        claims = [kind.is_compute, kind.is_send, kind.is_recv, kind in of_the_step]
        assert claims.count(True) == 1, kind


def test_gradients_travel_in_backward_transfers_only() -> None:
    assert {kind for kind in OpKind if kind.is_gradient} == {
        OpKind.SEND_BACKWARD,
        OpKind.RECV_BACKWARD,
    }


def test_a_step_ends_with_syncs_then_agree_then_updates() -> None:
    assert [str(op) for op in update_ops(["vision", "language"])] == [
        "grad_sync vision",
        "grad_sync language",
        "agree",
        "optimizer_step vision",
        "optimizer_step language",
    ]


def test_a_rank_that_trains_nothing_still_agrees() -> None:
    assert [str(op) for op in update_ops([])] == ["agree"]
