"""Prove a schedule before anything runs: complete, paired, ordered, free of deadlock.

The executor launches an exchange at a rank's send, its own receives included; a rank that
only receives posts its next receive as soon as the one before it is done. ``check`` runs
the op lists under the harshest reading of that: a send blocks until every receiver has
posted, and forwards, backwards and syncs are collectives over their ranks.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Iterable, Iterator
from itertools import pairwise

from disagg_train.errors import PlanError
from disagg_train.schedule.graph import ModuleGraph
from disagg_train.schedule.ops import Op, OpKind, Schedule

_SENDER_OF = {OpKind.RECV_FORWARD: OpKind.SEND_FORWARD, OpKind.RECV_BACKWARD: OpKind.SEND_BACKWARD}


def check(schedule: Schedule, graph: ModuleGraph) -> None:
    """Accept a schedule or name the first op at fault.

    Raises:
        PlanError: an op is missing, repeated, out of order, unpaired, holds too many
            activations, or waits for ever.
    """
    for rank, ops in enumerate(schedule.ops):
        _check_compute(rank, ops, schedule, graph)
        _check_commit_point(rank, ops)
    for edge in graph.edges:
        for receive, send in _SENDER_OF.items():
            _check_pairing(schedule, graph, edge.name, send, receive)
    _Run(schedule, graph).to_the_end()


def _check_compute(
    rank: int, ops: Iterable[Op], schedule: Schedule, graph: ModuleGraph
) -> None:
    in_flight: dict[str, set[int]] = defaultdict(set)
    done: Counter[tuple[OpKind, str, int]] = Counter()
    for op in (op for op in ops if op.kind.is_compute):
        held = in_flight[op.module]
        done[op.kind, op.module, op.microbatch] += 1
        if done[op.kind, op.module, op.microbatch] > 1:
            raise PlanError(f"rank {rank} runs '{op}' twice")
        if op.kind is OpKind.BACKWARD:
            if op.microbatch not in held:
                raise PlanError(f"rank {rank} runs '{op}' before its forward")
            held.remove(op.microbatch)
        elif op.kind is OpKind.FORWARD and graph.runs_backward(op.module):
            held.add(op.microbatch)
        bound = schedule.in_flight[op.module]
        if len(held) > bound:
            raise PlanError(f"rank {rank} at '{op}' holds {len(held)} activations, bound {bound}")
    for node in graph.nodes.values():
        if rank in node.places:
            _check_all_microbatches(rank, node.name, done, schedule.num_microbatches)


def _check_all_microbatches(
    rank: int, module: str, done: Counter[tuple[OpKind, str, int]], num_microbatches: int
) -> None:
    forwards = (OpKind.FORWARD, OpKind.EVALUATE)
    for microbatch in range(num_microbatches):
        if not any(done[kind, module, microbatch] for kind in forwards):
            raise PlanError(f"rank {rank} never runs '{Op(OpKind.FORWARD, module, microbatch)}'")
    backwards = {mb for kind, name, mb in done if (kind, name) == (OpKind.BACKWARD, module)}
    missing = set(range(num_microbatches)) - backwards
    if backwards and missing:
        raise PlanError(f"rank {rank} never runs '{Op(OpKind.BACKWARD, module, min(missing))}'")


def _check_commit_point(rank: int, ops: tuple[Op, ...]) -> None:
    """No weight may change before all modules agreed."""
    agreed = False
    for op in ops:
        agreed |= op.kind is OpKind.AGREE
        if op.kind is OpKind.OPTIMIZER_STEP and not agreed:
            raise PlanError(f"rank {rank} runs '{op}' before 'agree'")
        if op.kind in (OpKind.BACKWARD, OpKind.GRAD_SYNC) and agreed:
            raise PlanError(f"rank {rank} runs '{op}' after 'agree'")


def _check_pairing(
    schedule: Schedule, graph: ModuleGraph, boundary: str, send: OpKind, receive: OpKind
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


class _Run:
    """Runs all op lists at once, without time: only who waits for whom."""

    def __init__(self, schedule: Schedule, graph: ModuleGraph) -> None:
        self.schedule, self.graph = schedule, graph
        self.position = [0] * len(schedule.ops)
        self.arrived: dict[Hashable, set[int]] = defaultdict(set)
        self.waiting: dict[Hashable, list[int]] = defaultdict(list)
        self.lane_of = {
            (node.name, place): frozenset(lane)
            for node in graph.nodes.values()
            for lane in node.lanes
            for place in lane
        }
        self.everyone = frozenset(range(len(schedule.ops)))

    def to_the_end(self) -> None:
        """Run until nobody can move; raise where somebody is not done."""
        runnable = deque(range(len(self.schedule.ops)))
        for rank in range(len(self.schedule.ops)):
            list(self._post_first_receives(rank))
        while runnable:
            rank = runnable.popleft()
            runnable.extend(self._advance(rank))
        stuck = [r for r, ops in enumerate(self.schedule.ops) if self.position[r] < len(ops)]
        if stuck:
            waits = "; ".join(f"rank {r} at '{self._op(r)}'" for r in stuck[:6])
            raise PlanError(f"the schedule {self.schedule.name!r} deadlocks: {waits}")

    def _op(self, rank: int) -> Op:
        return self.schedule.ops[rank][self.position[rank]]

    def _advance(self, rank: int) -> Iterator[int]:
        """Move one rank as far as it gets; yield the ranks that this may have freed."""
        while self.position[rank] < len(self.schedule.ops[rank]):
            op = self._op(rank)
            event, members = self._needs(rank, op)
            if not op.kind.is_recv:
                yield from self._arrive(rank, event)
            if not members <= self.arrived[event]:
                self.waiting[event].append(rank)
                return
            self.position[rank] += 1
            if op.kind.is_recv:
                yield from self._post_next_receive(rank, op)

    def _arrive(self, rank: int, event: Hashable) -> Iterator[int]:
        if rank not in self.arrived[event]:
            self.arrived[event].add(rank)
            yield from self.waiting.pop(event, ())

    def _needs(self, rank: int, op: Op) -> tuple[Hashable, frozenset[int]]:
        """Return the event the op waits for, and the ranks that must have arrived at it."""
        if op.kind.is_send or op.kind.is_recv:
            edge = self.graph.edge(op.boundary)
            towards_source = op.kind.is_gradient != op.kind.is_recv
            module = edge.source if towards_source else edge.destination
            peers = self.graph.nodes[module].places
            return (op.boundary, op.kind.is_gradient, op.microbatch), peers
        if op.kind is OpKind.AGREE:
            return op, self.everyone
        if op.kind.is_compute:
            lane = self.lane_of[op.module, rank]
            return (op, lane), lane
        return op, self.graph.nodes[op.module].places

    def _post_first_receives(self, rank: int) -> Iterator[int]:
        seen: set[tuple[OpKind, str]] = set()
        for op in self.schedule.ops[rank]:
            if op.kind.is_recv and (op.kind, op.boundary) not in seen:
                seen.add((op.kind, op.boundary))
                yield from self._post(rank, op)

    def _post_next_receive(self, rank: int, done: Op) -> Iterator[int]:
        later = self.schedule.ops[rank][self.position[rank] :]
        following = next((op for op in later if _is(op, done.kind, done.boundary)), None)
        if following is not None:
            yield from self._post(rank, following)

    def _post(self, rank: int, op: Op) -> Iterator[int]:
        """Post a receive, unless the rank's own send of that exchange launches it."""
        edge = self.graph.edge(op.boundary)
        sender = edge.destination if op.kind.is_gradient else edge.source
        if rank not in self.graph.nodes[sender].places:
            yield from self._arrive(rank, self._needs(rank, op)[0])
