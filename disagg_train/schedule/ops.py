"""The words of a schedule: ops, and the op list of every rank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

_MOST_NAMES = 1 << 16


class OpKind(StrEnum):
    """What a rank does.

    A stage runs ``backward``, or ``backward_input`` (gradients of the received rows, first, so
    that the stage before can go on) and ``backward_weight`` later. A frozen stage that passes
    gradients on has ``backward_input`` alone. ``run_ahead`` is a forward of the next step's
    microbatch, of a stage whose weights do not change in between. ``start_grad_sync`` begins
    to sum gradients over dp, ``grad_sync`` waits for the sums.
    """

    FORWARD = "forward"
    BACKWARD = "backward"
    BACKWARD_INPUT = "backward_input"
    BACKWARD_WEIGHT = "backward_weight"
    EVALUATE = "evaluate"
    RUN_AHEAD = "run_ahead"
    SEND_FORWARD = "send_forward"
    RECV_FORWARD = "recv_forward"
    SEND_BACKWARD = "send_backward"
    RECV_BACKWARD = "recv_backward"
    START_GRAD_SYNC = "start_grad_sync"
    GRAD_SYNC = "grad_sync"
    AGREE = "agree"
    OPTIMIZER_STEP = "optimizer_step"

    @property
    def is_compute(self) -> bool:
        """Whether all ranks of a lane run the op together."""
        return self in _COMPUTE

    @property
    def gives_input_gradient(self) -> bool:
        """Whether the op makes what the stage before waits for."""
        return self in (OpKind.BACKWARD, OpKind.BACKWARD_INPUT)

    @property
    def is_send(self) -> bool:
        """Whether the op launches an exchange."""
        return self in (OpKind.SEND_FORWARD, OpKind.SEND_BACKWARD)

    @property
    def is_recv(self) -> bool:
        """Whether the op waits for an exchange."""
        return self in (OpKind.RECV_FORWARD, OpKind.RECV_BACKWARD)

    @property
    def is_gradient(self) -> bool:
        """Whether a transfer carries gradients."""
        return self in (OpKind.SEND_BACKWARD, OpKind.RECV_BACKWARD)


MOST_SENDS = 2
"""Sends of one edge and direction that a rank has under way at most."""

_COMPUTE = (
    OpKind.FORWARD,
    OpKind.BACKWARD,
    OpKind.BACKWARD_INPUT,
    OpKind.BACKWARD_WEIGHT,
    OpKind.EVALUATE,
    OpKind.RUN_AHEAD,
)


@dataclass(frozen=True, slots=True)
class Op:
    """One entry of a rank's schedule.

    Args:
        kind: what to do.
        module: whose forward, backward, gradient sync or update: the module's name, or its
            stage's (``language.1``) where it has several; empty for transfers.
        microbatch: which one; -1 where the op belongs to the step.
        boundary: name of the edge of a transfer: a boundary or a stage link.
    """

    kind: OpKind
    module: str = ""
    microbatch: int = -1
    boundary: str = ""

    def __str__(self) -> str:
        where = self.module or self.boundary
        number = f" {self.microbatch}" if self.microbatch >= 0 else ""
        return f"{self.kind} {where}{number}".replace("  ", " ").rstrip()


@lru_cache(_MOST_NAMES)
def op_of(name: str) -> Op | None:
    """Return the op that a span's name is of, if it is of one."""
    kind, *rest = name.split()
    if kind not in set(OpKind):
        return None
    of_kind, subject = OpKind(kind), rest[0] if rest else ""
    microbatch = int(rest[1]) if len(rest) > 1 else -1
    if of_kind.is_send or of_kind.is_recv:
        return Op(of_kind, "", microbatch, subject)
    return Op(of_kind, subject, microbatch)


@dataclass(frozen=True)
class Schedule:
    """The op lists of all ranks.

    Args:
        name: of the builder, for people.
        ops: per global rank.
        num_microbatches: of every module.
        in_flight: per stage, the most microbatches between forward and backward.
    """

    name: str
    ops: tuple[tuple[Op, ...], ...]
    num_microbatches: int
    in_flight: Mapping[str, int]


def update_ops(stages: Sequence[str]) -> list[Op]:
    """Return the end of a training step: settle gradients, agree, then change weights.

    Args:
        stages: the rank's stages that train.
    """
    syncs = [Op(OpKind.GRAD_SYNC, stage) for stage in stages]
    steps = [Op(OpKind.OPTIMIZER_STEP, stage) for stage in stages]
    return [*syncs, Op(OpKind.AGREE), *steps]
