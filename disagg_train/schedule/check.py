"""Prove a schedule before anything runs: complete, ordered, paired, free of deadlock."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

from disagg_train.errors import PlanError
from disagg_train.schedule.alike import alike_ranks
from disagg_train.schedule.expected import (
    change_in_flight,
    expected_evaluation,
    expected_ops,
    inputs_of,
)
from disagg_train.schedule.graph import StageGraph
from disagg_train.schedule.ops import Op, OpKind, Schedule
from disagg_train.schedule.replay import Replay

_MAKE_GRADIENTS = (OpKind.BACKWARD, OpKind.BACKWARD_INPUT, OpKind.BACKWARD_WEIGHT)
_SENDER_OF = {OpKind.RECV_FORWARD: OpKind.SEND_FORWARD, OpKind.RECV_BACKWARD: OpKind.SEND_BACKWARD}


def check(schedule: Schedule, graph: StageGraph) -> None:
    """Accept a schedule or name the first op at fault.

    A schedule without an ``evaluate`` op is a training step.

    Raises:
        PlanError: an op is missing, repeated, out of order, unpaired, holds too many
            activations, or waits for ever.
    """
    if len(schedule.ops) != graph.num_ranks:
        raise PlanError(
            f"the schedule {schedule.name!r} is for {len(schedule.ops)} ranks, the job has "
            f"{graph.num_ranks}"
        )
    training = all(op.kind is not OpKind.EVALUATE for ops in schedule.ops for op in ops)
    for rank in sorted(set(alike_ranks(schedule, graph))):
        stages, ops = frozenset(node.name for node in graph.stages_of(rank)), schedule.ops[rank]
        if training:
            expected = expected_ops(stages, graph, schedule.num_microbatches, ops)
        else:
            expected = expected_evaluation(stages, graph, schedule.num_microbatches)
        _check_complete(rank, ops, expected)
        _check_inputs(rank, ops, graph)
        _check_in_flight(rank, ops, schedule, graph)
        _check_end_of_step(rank, ops)
    for edge in graph.edges:
        for receive, send in _SENDER_OF.items():
            _check_pairing(schedule, graph, edge.name, send, receive)
    Replay(schedule, graph).to_the_end()


def _check_complete(rank: int, ops: tuple[Op, ...], expected: list[Op]) -> None:
    """A rank runs each expected op once and nothing else."""
    found, wanted = Counter(ops), set(expected)
    for op in ops:
        if op not in wanted:
            raise PlanError(f"rank {rank} has no part in '{op}'")
        if found[op] > 1:
            raise PlanError(f"rank {rank} runs '{op}' twice")
    for op in expected:
        if op not in found:
            raise PlanError(f"rank {rank} never runs '{op}'")


def _check_inputs(rank: int, ops: tuple[Op, ...], graph: StageGraph) -> None:
    """Every op runs after the ops of the same rank that make what it consumes."""
    place = {op: index for index, op in enumerate(ops)}
    for op in ops:
        for needed in inputs_of(op, graph):
            if place.get(needed, -1) > place[op]:
                raise PlanError(f"rank {rank} runs '{op}' before '{needed}'")


def _check_in_flight(rank: int, ops: Iterable[Op], schedule: Schedule, graph: StageGraph) -> None:
    """No stage holds more activations at once than the schedule declares."""
    held: dict[str, int] = defaultdict(int)
    for op in ops:
        held[op.module] += change_in_flight(op, graph)
        bound = schedule.in_flight.get(op.module, 0)
        if op.kind is OpKind.FORWARD and held[op.module] > bound:
            raise PlanError(
                f"rank {rank} at '{op}' holds {held[op.module]} activations, bound {bound}"
            )


def _check_end_of_step(rank: int, ops: tuple[Op, ...]) -> None:
    """Gradients are summed once they are whole, and no weight changes before all agreed."""
    summed: set[str] = set()
    agreed = False
    for op in ops:
        if op.kind in _MAKE_GRADIENTS and op.module in summed:
            raise PlanError(f"rank {rank} runs '{op}' after 'start_grad_sync {op.module}'")
        if op.kind is OpKind.OPTIMIZER_STEP and not agreed:
            raise PlanError(f"rank {rank} runs '{op}' before 'agree'")
        if op.kind in (*_MAKE_GRADIENTS, OpKind.GRAD_SYNC) and agreed:
            raise PlanError(f"rank {rank} runs '{op}' after 'agree'")
        if op.kind is OpKind.START_GRAD_SYNC:
            summed.add(op.module)
        agreed |= op.kind is OpKind.AGREE


def _check_pairing(
    schedule: Schedule, graph: StageGraph, boundary: str, send: OpKind, receive: OpKind
) -> None:
    """Every sender's and every receiver's order of microbatches must be the same list."""
    edge = graph.edge(boundary)
    sender, receiver = edge.source, edge.destination
    if send is OpKind.SEND_BACKWARD:
        sender, receiver = receiver, sender
    orders = [
        (rank, kind, [op.microbatch for op in schedule.ops[rank] if _is(op, kind, boundary)])
        for module, kind in ((sender, send), (receiver, receive))
        for rank in sorted(graph.nodes[module].places)
    ]
    for (_, _, expected), (rank, kind, found) in pairwise(orders):
        if found != expected:
            at = next(
                (i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b),
                min(len(expected), len(found)),
            )
            raise PlanError(
                f"rank {rank} runs {kind} of {boundary} in the order {found} where its peers "
                f"have {expected}; the first difference is at place {at}"
            )


def _is(op: Op, kind: OpKind, boundary: str) -> bool:
    return op.kind is kind and op.boundary == boundary
