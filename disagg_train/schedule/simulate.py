"""Run op lists against a cost model: the same lists, and the same waits, as the executor's.

Every rank's ops have a fixed order, so time is the longest path over what waits for what:

- A forward, a backward or a gradient sync begins when the last of its ranks is there.
- A send goes on at once, unless two sends of that edge and direction are still under way: it
  then waits until the older one is received. Rows travel once all senders have launched and
  the receiver has posted; every rank of the source is taken to send to every rank of the
  destination.
- Receives are posted one ahead: the next one of an edge when the one before is done, or with
  the rank's own send of that exchange.
- A sync that was started earlier costs only what is left of it. Transfers and syncs do not
  slow each other or the ranks' compute down.
- A forward that was run ahead in the step before costs nothing: in the steady state that is
  the microbatches which this step runs ahead for the next one.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from math import inf

from disagg_train.errors import PlanError
from disagg_train.schedule.alike import alike_ranks
from disagg_train.schedule.costs import CostModel
from disagg_train.schedule.graph import StageGraph
from disagg_train.schedule.ops import MOST_SENDS, Op, OpKind, Schedule
from disagg_train.schedule.program import Program
from disagg_train.schedule.timeline import Slice, Timeline

_MOST_NAMED = 6
_BACKWARDS = (OpKind.BACKWARD, OpKind.BACKWARD_INPUT, OpKind.BACKWARD_WEIGHT)


def simulate(schedule: Schedule, graph: StageGraph, costs: CostModel) -> Timeline:
    """Return when every rank runs every op.

    Args:
        schedule: op lists of all ranks; ``check`` says more of a wrong one.
        graph: the stage graph that they were built for.
        costs: what ops cost.

    Raises:
        PlanError: ranks wait for ever, or an op's cost is unknown; names the ops.
    """
    alike = alike_ranks(schedule, graph)
    slices = _Simulation(schedule, graph, costs, alike).to_the_end()
    peaks = {rank: peak_bytes(schedule.ops[rank], costs) for rank in slices}
    return Timeline(
        graph,
        alike,
        tuple(tuple(slices[first]) for first in alike),
        tuple(peaks[first] for first in alike),
    )


def peak_bytes(ops: Iterable[Op], costs: CostModel) -> float:
    """Return the most bytes of activations that a rank keeps for backwards at once.

    A microbatch's are kept from its forward to the end of its last backward op, which is
    ``backward_weight`` where the backward is split.
    """
    ops = tuple(ops)
    last = {(op.module, op.microbatch): op for op in ops if op.kind in _BACKWARDS}
    held = peak = 0.0
    for op in ops:
        key = op.module, op.microbatch
        if op.kind is OpKind.FORWARD and key in last:
            held += costs.bytes_of(*key)
            peak = max(peak, held)
        if last.get(key) is op:
            held -= costs.bytes_of(*key)
    return peak


class _Meeting:
    """Something that several ranks take part in; complete once all of them have come."""

    def __init__(self, members: frozenset[int]) -> None:
        self.members = members
        self.arrived_s: dict[int, float] = {}
        self.last_s = -inf
        """When the last member came; ask only once it has."""
        self.waiting: list[_Process] = []

    def arrive(self, rank: int, now_s: float) -> None:
        """Note the first time that a rank comes."""
        if rank not in self.arrived_s:
            self.arrived_s[rank] = now_s
            self.last_s = max(self.last_s, now_s)

    @property
    def is_complete(self) -> bool:
        return len(self.arrived_s) == len(self.members)


class _Exchange:
    """One microbatch on its way over an edge, in one direction."""

    def __init__(self, senders: frozenset[int], receivers: frozenset[int], takes_s: float) -> None:
        self.launches, self.posts = _Meeting(senders), _Meeting(receivers)
        self._takes_s = takes_s

    def arrival_s(self, receiver: int) -> float:
        """Return when the rows are at a receiver; ask only once all senders have launched."""
        return max(self.launches.last_s, self.posts.arrived_s[receiver]) + self._takes_s

    @property
    def received_s(self) -> float:
        """When the rows are at all receivers; ask only once both meetings are complete."""
        return max(self.launches.last_s, self.posts.last_s) + self._takes_s


_Process = Iterator[_Meeting]
"""A rank under simulation: it yields the meetings that it waits for."""

_Times = Generator[_Meeting, None, tuple[float, float]]
"""An op under simulation: it returns its begin and end."""


class _Simulation:
    """Runs one rank of every kind, each until it waits for another one."""

    def __init__(
        self, schedule: Schedule, graph: StageGraph, costs: CostModel, alike: tuple[int, ...]
    ) -> None:
        self._schedule, self._graph, self._costs = schedule, graph, costs
        self._ranks = sorted(set(alike))
        self._programs = {rank: Program(schedule.ops[rank]) for rank in self._ranks}
        self._everyone = frozenset(self._ranks)
        self._members = {
            node.name: frozenset(alike[place] for place in node.places)
            for node in graph.nodes.values()
        }
        self._lanes = {
            (node.name, place): frozenset(alike[peer] for peer in lane)
            for node in graph.nodes.values()
            for lane in node.lanes
            for place in self._everyone.intersection(lane)
        }
        self._ran_ahead = {
            (op.module, op.microbatch)
            for rank in self._ranks
            for op in schedule.ops[rank]
            if op.kind is OpKind.RUN_AHEAD
        }
        self._meetings: dict[Hashable, _Meeting] = {}
        self._exchanges: dict[Hashable, _Exchange] = {}
        self._sent: dict[tuple[int, OpKind, str], deque[_Exchange]] = defaultdict(deque)
        self._slices: dict[int, list[Slice]] = {rank: [] for rank in self._ranks}
        self._runnable: deque[_Process] = deque()
        self._do: dict[OpKind, Callable[[int, Op, float], _Times]] = {
            OpKind.FORWARD: self._compute,
            OpKind.BACKWARD: self._compute,
            OpKind.BACKWARD_INPUT: self._compute,
            OpKind.BACKWARD_WEIGHT: self._compute,
            OpKind.EVALUATE: self._compute,
            OpKind.RUN_AHEAD: self._compute,
            OpKind.SEND_FORWARD: self._send,
            OpKind.RECV_FORWARD: self._receive,
            OpKind.SEND_BACKWARD: self._send,
            OpKind.RECV_BACKWARD: self._receive,
            OpKind.START_GRAD_SYNC: self._start_sync,
            OpKind.GRAD_SYNC: self._sync,
            OpKind.AGREE: self._agree,
            OpKind.OPTIMIZER_STEP: self._optimizer_step,
        }

    def to_the_end(self) -> dict[int, list[Slice]]:
        """Run until nobody can move; return the slices of one rank of every kind."""
        for rank in self._ranks:
            for op in self._programs[rank].first_receives:
                self._post(rank, op, self._costs.start_s)
            self._runnable.append(self._run(rank))
        while self._runnable:
            process = self._runnable.popleft()
            for meeting in process:
                if not meeting.is_complete:
                    meeting.waiting.append(process)
                    break
        self._check_done()
        return self._slices

    def _check_done(self) -> None:
        done = {rank: len(slices) for rank, slices in self._slices.items()}
        stuck = [rank for rank in self._ranks if done[rank] < len(self._schedule.ops[rank])]
        if stuck:
            at = [(rank, self._schedule.ops[rank][done[rank]]) for rank in stuck[:_MOST_NAMED]]
            waits = "; ".join(f"rank {rank} at '{op}'" for rank, op in at)
            raise PlanError(f"the schedule {self._schedule.name!r} deadlocks: {waits}")

    def _run(self, rank: int) -> _Process:
        now_s, slices = self._costs.start_s, self._slices[rank]
        for op in self._schedule.ops[rank]:
            begin_s, now_s = yield from self._do[op.kind](rank, op, now_s)
            slices.append(Slice(op, begin_s, now_s))
            if following := self._programs[rank].next_receive.get(op):
                self._post(rank, following, now_s)

    # Compute, and the end of a step.

    def _compute(self, rank: int, op: Op, now_s: float) -> _Times:
        return self._together(rank, op, self._lanes[op.module, rank], now_s)

    def _agree(self, rank: int, op: Op, now_s: float) -> _Times:
        return self._together(rank, op, self._everyone, now_s)

    def _together(self, rank: int, op: Op, members: frozenset[int], now_s: float) -> _Times:
        meeting = self._meet(rank, (op, members), members, now_s)
        yield meeting
        return meeting.last_s, meeting.last_s + self._seconds(op)

    def _seconds(self, op: Op) -> float:
        if op.kind is OpKind.FORWARD and (op.module, op.microbatch) in self._ran_ahead:
            return 0.0
        return self._costs.op_s(op)

    def _start_sync(self, rank: int, op: Op, now_s: float) -> _Times:
        yield from ()
        end_s = now_s + self._costs.op_s(op)
        self._meet(rank, (OpKind.GRAD_SYNC, op.module), self._members[op.module], end_s)
        return now_s, end_s

    def _sync(self, rank: int, op: Op, now_s: float) -> _Times:
        key = OpKind.GRAD_SYNC, op.module
        meeting = self._meet(rank, key, self._members[op.module], now_s)
        yield meeting
        begin_s = max(now_s, meeting.last_s)
        return begin_s, max(now_s, meeting.last_s + self._costs.op_s(op))

    def _optimizer_step(self, rank: int, op: Op, now_s: float) -> _Times:
        del rank
        yield from ()
        return now_s, now_s + self._costs.op_s(op)

    def _meet(self, rank: int, key: Hashable, members: frozenset[int], now_s: float) -> _Meeting:
        meeting = self._meetings.setdefault(key, _Meeting(members))
        self._arrive(meeting, rank, now_s)
        return meeting

    def _arrive(self, meeting: _Meeting, rank: int, now_s: float) -> None:
        """Note the first time that a rank comes, and wake those who wait for the last one."""
        meeting.arrive(rank, now_s)
        if meeting.is_complete:
            self._runnable.extend(meeting.waiting)
            meeting.waiting.clear()

    # Transfers.

    def _send(self, rank: int, op: Op, now_s: float) -> _Times:
        begin_s, under_way = now_s, self._sent[rank, op.kind, op.boundary]
        if len(under_way) == MOST_SENDS:
            oldest = under_way.popleft()
            yield oldest.launches
            yield oldest.posts
            now_s = max(now_s, oldest.received_s)
        exchange = self._exchange(op)
        now_s += self._costs.op_s(op)
        under_way.append(exchange)
        self._arrive(exchange.launches, rank, now_s)
        if rank in exchange.posts.members:
            self._arrive(exchange.posts, rank, now_s)
        return begin_s, now_s

    def _receive(self, rank: int, op: Op, now_s: float) -> _Times:
        exchange = self._exchange(op)
        yield exchange.launches
        return now_s, max(now_s, exchange.arrival_s(rank)) + self._costs.op_s(op)

    def _exchange(self, op: Op) -> _Exchange:
        key = op.boundary, op.kind.is_gradient, op.microbatch
        if key not in self._exchanges:
            edge = self._graph.edge(op.boundary)
            sides = self._members[edge.source], self._members[edge.destination]
            senders, receivers = reversed(sides) if op.kind.is_gradient else sides
            self._exchanges[key] = _Exchange(senders, receivers, self._costs.transfer_s(op))
        return self._exchanges[key]

    def _post(self, rank: int, op: Op, now_s: float) -> None:
        """Post a receive, unless the rank's own send of that exchange will."""
        exchange = self._exchange(op)
        if rank not in exchange.launches.members:
            self._arrive(exchange.posts, rank, now_s)
