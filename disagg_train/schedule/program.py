"""One rank's op list, and what follows from it: worked out once, used at every step."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from disagg_train.schedule.ops import Op, OpKind


@dataclass(frozen=True)
class Program:
    """What a rank runs.

    Receives are posted one ahead: the first one of each edge and way when a step begins, each
    other one when the one before it is done.
    """

    ops: Sequence[Op]

    @cached_property
    def first_receives(self) -> tuple[Op, ...]:
        """The receives to post when a step begins."""
        firsts: dict[tuple[OpKind, str], Op] = {}
        for op in self.ops:
            if op.kind.is_recv:
                firsts.setdefault((op.kind, op.boundary), op)
        return tuple(firsts.values())

    @cached_property
    def next_receive(self) -> dict[Op, Op]:
        """Per receive, the one to post once it is done."""
        following: dict[Op, Op] = {}
        before: dict[tuple[OpKind, str], Op] = {}
        for op in self.ops:
            if op.kind.is_recv:
                if last := before.get((op.kind, op.boundary)):
                    following[last] = op
                before[op.kind, op.boundary] = op
        return following

    @cached_property
    def stages_with_backward(self) -> frozenset[str]:
        """The stages whose activations wait for a backward."""
        return frozenset(op.module for op in self.ops if op.kind.gives_input_gradient)
