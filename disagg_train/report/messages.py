"""Who sent rows to whom in a step, from its plan and the job's layouts."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from disagg_train.boundary.of_job import job_edges
from disagg_train.boundary.step_exchanges import Boundary, RankEdge
from disagg_train.config.job import JobConfig
from disagg_train.planner.step_plan import StepPlan
from disagg_train.report.waits import Exchange, StepTimeline
from disagg_train.schedule.ops import Op, OpKind

Pairs = Mapping[int, Mapping[int, int]]
"""Per receiver and sender, the tokens of a message; 0 where that is not known."""


@dataclass(frozen=True)
class Arrow:
    """A message as it is drawn: from the op that sent it to the op that received it.

    Args:
        sender: global rank.
        sent: index of the op in the sender's row.
        receiver: global rank.
        received: index of the op in the receiver's row.
        tokens: of the message; 0 where that is not known.
    """

    sender: int
    sent: int
    receiver: int
    received: int
    tokens: int


class Messages:
    """The messages of a job's steps.

    Args:
        job: the job.
    """

    def __init__(self, job: JobConfig) -> None:
        self._edges = job_edges(job)

    def of_step(self, plan: StepPlan) -> dict[Exchange, Pairs]:
        """Return the messages between different ranks, per exchange of a step."""
        found: dict[Exchange, Pairs] = {}
        for name, edge in self._edges.items():
            for microbatch in range(plan.num_microbatches):
                forward = _forward(edge, plan, microbatch)
                found[name, False, microbatch] = forward
                found[name, True, microbatch] = _transposed(forward)
        return found


def _forward(edge: RankEdge, plan: StepPlan, microbatch: int) -> Pairs:
    pairs: dict[int, dict[int, int]] = defaultdict(dict)
    if not isinstance(edge, Boundary):
        for sender, receiver in zip(edge.source_places, edge.destination_places, strict=True):
            pairs[receiver][sender] = 0
        return pairs
    for route in edge.layouts(plan, microbatch).routes():
        if not route.is_local:
            tokens = pairs[route.destination].get(route.source, 0)
            pairs[route.destination][route.source] = tokens + len(route)
    return pairs


def _transposed(pairs: Pairs) -> Pairs:
    found: dict[int, dict[int, int]] = defaultdict(dict)
    for receiver, senders in pairs.items():
        for sender, tokens in senders.items():
            found[sender][receiver] = tokens
    return found


def arrows(timeline: StepTimeline, messages: Mapping[Exchange, Pairs]) -> list[Arrow]:
    """Return the messages of a step as arrows between ops, in the order of the receivers' rows.

    Where nothing is known of an exchange, an arrow goes from the rank that was waited for.
    """
    index = {
        (place, timed.op): number
        for place, row in timeline.rows.items()
        for number, timed in enumerate(row)
        if timed.op is not None
    }
    found = []
    for (place, op), received in index.items():
        if op.kind.is_recv:
            send = _send_of(op)
            exchange = op.boundary, op.kind.is_gradient, op.microbatch
            if exchange in messages:
                senders = messages[exchange].get(place, {})
            else:
                senders = _waited_for(timeline, place, received)
            found += [
                Arrow(sender, index[sender, send], place, received, tokens)
                for sender, tokens in senders.items()
                if (sender, send) in index
            ]
    return found


def _send_of(op: Op) -> Op:
    kind = OpKind.SEND_BACKWARD if op.kind.is_gradient else OpKind.SEND_FORWARD
    return Op(kind, "", op.microbatch, op.boundary)


def _waited_for(timeline: StepTimeline, place: int, received: int) -> Mapping[int, int]:
    sender = timeline.rows[place][received].waits_for
    return {} if sender is None else {sender: 0}
