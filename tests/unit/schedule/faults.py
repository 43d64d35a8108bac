"""Ways to break a schedule, for the tests of the checker."""

from collections.abc import Callable, Collection
from dataclasses import replace

from disagg_train.schedule.graph import StageGraph
from disagg_train.schedule.ops import Op, OpKind, Schedule

Edit = Callable[[list[Op]], list[Op]]


def edited(schedule: Schedule, ranks: Collection[int], edit: Edit) -> Schedule:
    """Return the schedule with the op lists of some ranks changed."""
    return replace(
        schedule,
        ops=tuple(
            tuple(edit(list(ops)) if rank in ranks else ops)
            for rank, ops in enumerate(schedule.ops)
        ),
    )


def without(op: Op) -> Edit:
    """Leave an op out."""
    return lambda ops: [other for other in ops if other != op]


def twice(op: Op) -> Edit:
    """Run an op twice in a row."""
    return lambda ops: [copy for other in ops for copy in [other] * (1 + (other == op))]


def swapped(first: Op, second: Op) -> Edit:
    """Exchange two ops."""
    other_of = {first: second, second: first}
    return lambda ops: [other_of.get(op, op) for op in ops]


def moved_before(op: Op, target: Op) -> Edit:
    """Run an op right before another one."""

    def edit(ops: list[Op]) -> list[Op]:
        rest = [other for other in ops if other != op]
        at = rest.index(target)
        return [*rest[:at], op, *rest[at:]]

    return edit


def ranks_with(schedule: Schedule, op: Op) -> list[int]:
    """Return the ranks that run an op."""
    return [rank for rank, ops in enumerate(schedule.ops) if op in ops]


def ops_of(schedule: Schedule, *kinds: OpKind) -> list[Op]:
    """Return every op of some kinds once, in the order of the ranks."""
    return list(dict.fromkeys(op for ops in schedule.ops for op in ops if op.kind in kinds))


def computing(kind: OpKind, module: str, microbatch: int) -> Op:
    """Return a forward, backward or evaluation."""
    return Op(kind, module, microbatch)


def carrying(kind: OpKind, boundary: str, microbatch: int) -> Op:
    """Return a send or receive."""
    return Op(kind, microbatch=microbatch, boundary=boundary)


def ranks_of(graph: StageGraph, module: str) -> list[int]:
    """Return a module's ranks."""
    return sorted(graph.nodes[module].places)
