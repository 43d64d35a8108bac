"""Run op lists without time: only who waits for whom. Finds every deadlock before a run does."""

from collections import defaultdict, deque
from collections.abc import Hashable, Iterator

from disagg_train.errors import PlanError
from disagg_train.schedule.alike import alike_ranks
from disagg_train.schedule.graph import StageGraph
from disagg_train.schedule.ops import Op, OpKind, Schedule
from disagg_train.schedule.program import Program


class Replay:
    """All ranks at once, under rendezvous semantics; of ranks that are alike, the first.

    A send blocks until every receiver has posted; forwards, backwards and syncs are
    collectives over their ranks. An exchange is launched at a rank's send, its own receives
    included; a rank that only receives posts its next receive once the one before is done.
    To start a sync waits for nobody.
    """

    def __init__(self, schedule: Schedule, graph: StageGraph) -> None:
        self.schedule, self.graph = schedule, graph
        alike = alike_ranks(schedule, graph)
        self.ranks = sorted(set(alike))
        self.programs = {rank: Program(schedule.ops[rank]) for rank in self.ranks}
        self.position = dict.fromkeys(self.ranks, 0)
        self.arrived: dict[Hashable, set[int]] = defaultdict(set)
        self.waiting: dict[Hashable, list[int]] = defaultdict(list)
        self.places = {
            node.name: frozenset(alike[place] for place in node.places)
            for node in graph.nodes.values()
        }
        self.lane_of = {
            (node.name, alike[place]): frozenset(alike[partner] for partner in lane)
            for node in graph.nodes.values()
            for lane in node.lanes
            for place in lane
        }
        self.tied = frozenset(place for stage in graph.tied for place in self.places[stage])
        self.everyone = frozenset(self.ranks)

    def to_the_end(self) -> None:
        """Run until nobody can move.

        Raises:
            PlanError: somebody is not done; names the ops that wait for ever.
        """
        runnable = deque(self.ranks)
        for rank in self.ranks:
            for op in self.programs[rank].first_receives:
                list(self._post(rank, op))
        while runnable:
            rank = runnable.popleft()
            runnable.extend(self._advance(rank))
        stuck = [r for r in self.ranks if self.position[r] < len(self.schedule.ops[r])]
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
            if following := self.programs[rank].next_receive.get(op):
                yield from self._post(rank, following)

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
            peers = self.places[module]
            return (op.boundary, op.kind.is_gradient, op.microbatch), peers
        if op.kind is OpKind.AGREE:
            return op, self.everyone
        if op.kind is OpKind.START_GRAD_SYNC:
            return (op, rank), frozenset((rank,))
        if op.kind.is_compute:
            lane = self.lane_of[op.module, rank]
            return (op, lane), lane
        if op.kind is OpKind.GRAD_SYNC and op.module in self.graph.tied:
            return (op.kind, self.graph.tied), self.tied
        return op, self.places[op.module]

    def _post(self, rank: int, op: Op) -> Iterator[int]:
        """Post a receive, unless the rank's own send of that exchange launches it."""
        edge = self.graph.edge(op.boundary)
        sender = edge.destination if op.kind.is_gradient else edge.source
        if rank not in self.places[sender]:
            yield from self._arrive(rank, self._needs(rank, op)[0])
