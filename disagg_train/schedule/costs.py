"""What a schedule costs: seconds of every op, seconds and bytes of transfers, activations."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from disagg_train.errors import PlanError
from disagg_train.schedule.ops import Op, OpKind

Values = tuple[float, ...]
"""A number per microbatch, or a single one that holds for all."""

_HALVES = (OpKind.BACKWARD_INPUT, OpKind.BACKWARD_WEIGHT)


@dataclass(frozen=True)
class TransferCost:
    """One direction of an edge.

    Args:
        latency_s: from when both sides are there until the first byte.
        num_bytes: that the busiest rank sends or receives.
        bytes_per_s: between two ranks.
    """

    latency_s: Values = (0.0,)
    num_bytes: Values = (0.0,)
    bytes_per_s: float = inf

    def seconds(self, microbatch: int) -> float:
        """Return how long one microbatch's rows are on their way."""
        return at(self.latency_s, microbatch) + at(self.num_bytes, microbatch) / self.bytes_per_s


@dataclass(frozen=True)
class CostModel:
    """What ops cost.

    Args:
        seconds: by op kind and stage; forwards and backwards must be there, or what stands in
            for them (``op_s``), anything else costs nothing where it is absent.
        transfers: by send kind and edge; a transfer that is absent takes no time.
        activation_bytes: per stage, what one rank keeps of a microbatch for its backward.
        start_s: seconds before the first op of a step.
    """

    seconds: Mapping[tuple[OpKind, str], Values]
    transfers: Mapping[tuple[OpKind, str], TransferCost] = field(default_factory=dict)
    activation_bytes: Mapping[str, Values] = field(default_factory=dict)
    start_s: float = 0.0

    def op_s(self, op: Op) -> float:
        """Return the seconds that a rank is at an op, once everything it waits for is there.

        Evaluating and running ahead cost a forward where nothing else is said, either half of
        a backward half of it, and a backward both its halves.

        Raises:
            PlanError: nothing is known of a forward or backward.
        """
        subject, microbatch = op.module or op.boundary, op.microbatch
        if (own := self.seconds.get((op.kind, subject))) is not None:
            return at(own, microbatch)
        forward = self.seconds.get((OpKind.FORWARD, subject))
        if forward is not None and op.kind in (OpKind.EVALUATE, OpKind.RUN_AHEAD):
            return at(forward, microbatch)
        whole = self.seconds.get((OpKind.BACKWARD, subject))
        if whole is not None and op.kind in _HALVES:
            return at(whole, microbatch) / 2
        halves = [
            self.seconds[kind, subject] for kind in _HALVES if (kind, subject) in self.seconds
        ]
        if halves and op.kind is OpKind.BACKWARD:
            return sum(at(half, microbatch) for half in halves)
        if op.kind.is_compute:
            known = sorted({stage for kind, stage in self.seconds if kind.is_compute})
            raise PlanError(f"no seconds are known for '{op}'; the stages with costs are {known}")
        return 0.0

    def transfer_s(self, op: Op) -> float:
        """Return how long the rows of a send or receive are on their way."""
        kind = OpKind.SEND_BACKWARD if op.kind.is_gradient else OpKind.SEND_FORWARD
        cost = self.transfers.get((kind, op.boundary))
        return cost.seconds(op.microbatch) if cost else 0.0

    def bytes_of(self, stage: str, microbatch: int) -> float:
        """Return the bytes of a microbatch's activations on one rank of a stage."""
        return at(self.activation_bytes.get(stage, (0.0,)), microbatch)


def at(values: Values, microbatch: int) -> float:
    """Return a microbatch's value.

    Raises:
        PlanError: there are values for fewer microbatches.
    """
    if len(values) == 1:
        return values[0]
    if microbatch >= len(values):
        raise PlanError(f"costs are known for {len(values)} microbatches, none for {microbatch}")
    return values[microbatch]
