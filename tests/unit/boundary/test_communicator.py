"""Rows really cross between gloo ranks, as the exchanges say; buffers are used again safely.

A token travels as its global id plus one, so a zero is a row that nothing was written to.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.distributed import Store

from disagg_train.boundary.communicator import Communicator
from disagg_train.boundary.exchange import Exchange
from disagg_train.boundary.gloo import GlooTransport
from disagg_train.boundary.layouts import Side
from disagg_train.boundary.step_exchanges import Boundary, edge_places
from disagg_train.boundary.transport import Message, Pending
from disagg_train.planner.in_order import in_order
from disagg_train.planner.step_plan import Assignment, SampleSize, Slot, StepPlan
from disagg_train.topology.grid import Grid
from tests.unit.boundary.gloo_ranks import join, on_each_rank
from tests.unit.boundary.strategies import ENCODER, LANGUAGE, BoundaryCase

WIDTH = 3
CPU = torch.device("cpu")
PADDING = 1e9
"""At a sender's rows without a token, and in buffers that are given back."""


def boundary_of(
    source: Grid,
    destination: Grid,
    sp: tuple[bool, bool] = (False, False),
    first: int | None = None,
    packed: bool = True,
) -> Boundary:
    """Return a boundary whose destination starts at place ``first``; disjoint where not given."""
    first = source.size if first is None else first
    places = tuple(range(first, first + destination.size))
    return Boundary(
        "vision->language",
        Side(ENCODER, source, tuple(range(source.size)), sp[0]),
        Side(LANGUAGE, destination, places, sp[1], packed),
    )


def plan_of(tokens: Sequence[int], **assignment: Assignment) -> StepPlan:
    """Return samples of two text tokens, ``n`` image tokens and two more text tokens."""
    samples = tuple(
        SampleSize(i, 4 + n, 1, {ENCODER: (Slot(2, n),)} if n else {}) for i, n in enumerate(tokens)
    )
    return StepPlan(0, samples, assignment)


def plan_in_order(tokens: Sequence[int], microbatches: int, boundary: Boundary) -> StepPlan:
    sides = (boundary.source, boundary.destination)
    lanes = {s.module: in_order(len(tokens), microbatches, s.grid.dp) for s in sides}
    return plan_of(tokens, **lanes)


def cases_of(plan: StepPlan, boundary: Boundary) -> list[BoundaryCase]:
    """Return what the oracle says of every microbatch."""
    return [
        BoundaryCase(plan, boundary.source, boundary.destination, microbatch)
        for microbatch in range(plan.num_microbatches)
    ]


def rows_of(tokens: Sequence[int | None], padding: float) -> Tensor:
    """Return a buffer with each token's value at its row."""
    values = [padding if token is None else token + 1.0 for token in tokens]
    return torch.tensor(values)[:, None].repeat(1, WIDTH)


def sent(case: BoundaryCase, place: int, gradients: bool) -> Tensor | None:
    """Return the buffer that a rank sends from; None where it is on no sending side."""
    if gradients:
        here = place in case.needed
        return rows_of(sorted(case.needed_by(place)), PADDING) if here else None
    return rows_of(case.held[place], PADDING) if place in case.held else None


def expected(case: BoundaryCase, place: int, gradients: bool) -> Tensor:
    """Return what a rank must get: zero where there is no token, or nobody needs it."""
    if not gradients:
        return rows_of(sorted(case.needed_by(place)), 0.0)
    held = case.held.get(place, [])
    return rows_of([token if token in case.payload else None for token in held], 0.0)


@contextmanager
def communicator_of(
    boundary: Boundary, place: int, store: Store, gradients: bool = False
) -> Iterator[Communicator]:
    """Open one rank's end of one direction, as ``open_links`` does; drain it at the end."""
    wire = GlooTransport(join("wire", store, edge_places(boundary), place))
    alike = boundary.replicas_of(place, gradients)
    gather = GlooTransport(join(f"replicas/{alike[0]}", store, alike, place)) if alike else None
    communicator = Communicator("under test", wire, WIDTH, CPU, gather)
    yield communicator
    communicator.drain()
    communicator.close()


def start(
    communicator: Communicator, number: int, exchange: Exchange, rows_TD: Tensor | None
) -> None:
    """Launch an exchange, or post it where this rank only receives."""
    if rows_TD is None:
        communicator.post(number, exchange)
    else:
        communicator.launch(number, exchange, rows_TD)


PAIRS: Mapping[str, Boundary] = {
    "dp2 to tp2": boundary_of(Grid(dp=2), Grid(tp=2)),
    "dp2 to tp2 sp": boundary_of(Grid(dp=2), Grid(tp=2), (False, True)),
    "tp2 to dp2": boundary_of(Grid(tp=2), Grid(dp=2)),
    "tp2 sp to tp2": boundary_of(Grid(tp=2), Grid(tp=2), (True, False)),
    "tp2 to tp3": boundary_of(Grid(tp=2), Grid(tp=3)),
    "cp2 to dp2": boundary_of(Grid(cp=2), Grid(dp=2)),
    "dp2 to cp2": boundary_of(Grid(dp=2), Grid(cp=2)),
    "cp2 tp2 sp to cp2 tp2": boundary_of(Grid(cp=2, tp=2), Grid(cp=2, tp=2), (True, False)),
    "tp2 dp2 to cp2 tp2 sp": boundary_of(Grid(tp=2, dp=2), Grid(cp=2, tp=2), (False, True)),
    "dp3 to padded cp2 tp2 sp": boundary_of(
        Grid(dp=3), Grid(cp=2, tp=2), (False, True), packed=False
    ),
    "pp2 dp2 to pp2 tp2": boundary_of(Grid(pp=2, dp=2), Grid(pp=2, tp=2)),
    "colocated dp2 as tp2": boundary_of(Grid(dp=2), Grid(tp=2), first=0),
    "colocated tp2 as dp2": boundary_of(Grid(tp=2), Grid(dp=2), first=0),
    "colocated tp2 sp as cp2": boundary_of(Grid(tp=2), Grid(cp=2), (True, False), first=0),
    "colocated dp4 as tp2 dp2 sp": boundary_of(
        Grid(dp=4), Grid(tp=2, dp=2), (False, True), first=0
    ),
    "partly shared dp3 and tp3": boundary_of(Grid(dp=3), Grid(tp=3), first=1),
}


@pytest.mark.parametrize("gradients", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(
    "tokens",
    [[3, 0, 5, 7, 2, 0, 0, 4], [0, 0, 0, 0, 9, 1], [0, 0, 0]],
    ids=["some", "late", "none"],
)
@pytest.mark.parametrize("boundary", PAIRS.values(), ids=PAIRS)
def test_rows_arrive_where_the_layout_says(
    boundary: Boundary, tokens: list[int], gradients: bool
) -> None:
    plan = plan_in_order(tokens, 3, boundary)
    cases = cases_of(plan, boundary)

    def run(place: int, store: Store) -> list[Tensor]:
        arrived = []
        with communicator_of(boundary, place, store, gradients) as communicator:
            for number, mine in enumerate(boundary.exchanges(plan, place)):
                exchange = mine.backward if gradients else mine.forward
                start(communicator, number, exchange, sent(cases[number], place, gradients))
                received = communicator.finish(number)
                arrived.append(received.clone())
                communicator.release(received)
        return arrived

    places = edge_places(boundary)
    for place, arrived in zip(places, on_each_rank(places, run), strict=True):
        for case, received in zip(cases, arrived, strict=True):
            assert torch.equal(received, expected(case, place, gradients))


def receive_twice(first: BoundaryCase, second: BoundaryCase, boundary: Boundary) -> int:
    """Carry two cases' gradients, the second into the first one's buffer, which is spoilt.

    Returns:
        How many ranks had rows in the second buffer that must be zero, and were.
    """

    def run(place: int, store: Store) -> list[tuple[int, Tensor]]:
        seen = []
        with communicator_of(boundary, place, store, gradients=True) as communicator:
            for number, case in enumerate((first, second)):
                rows_TD = sent(case, place, gradients=True)
                start(communicator, number, case.backward[place], rows_TD)
                received = communicator.finish(number)
                seen.append((received.data_ptr(), received.clone()))
                received.fill_(PADDING)
                communicator.release(received)
        return seen

    num_zeroed = 0
    for place, seen in zip(first.places, on_each_rank(first.places, run), strict=True):
        wanted = expected(second, place, gradients=True)
        if (wanted == 0).any():
            (address, _), (address_again, received) = seen
            assert address == address_again, "another buffer was taken; this shows nothing"
            assert torch.equal(received, wanted)
            num_zeroed += 1
    return num_zeroed


@pytest.mark.parametrize("first", [None, 0], ids=["disjoint", "colocated"])
@pytest.mark.parametrize(
    ("source", "sp", "num_padded"), [(Grid(tp=2), True, 1), (Grid(cp=2), False, 2)]
)
def test_padding_rows_of_a_buffer_used_again_are_zero(
    source: Grid, sp: bool, num_padded: int, first: int | None
) -> None:
    # 6 tokens leave no padding over tp 2, and 5 one row; over cp 2 both are padded to 8.
    boundary = boundary_of(source, Grid(dp=2), (sp, False), first)
    plan = plan_of([6, 5], vision=(((0,),), ((1,),)), language=(((0,), ()), ((1,), ())))
    assert receive_twice(*cases_of(plan, boundary), boundary) == num_padded


@pytest.mark.parametrize("first", [None, 0], ids=["disjoint", "colocated"])
@pytest.mark.parametrize("source", [Grid(), Grid(tp=2)], ids=["alone", "replicated"])
def test_gradients_of_tokens_that_nobody_needs_are_zero_in_a_buffer_used_again(
    source: Grid, first: int | None
) -> None:
    boundary = boundary_of(source, Grid(dp=2), first=first)
    encoded = (((0, 1),), ((2,),))
    all_needed = plan_of([4, 3, 1], vision=encoded, language=(((0,), (1,)), ((2,), ())))
    put_off = plan_of([4, 3, 1], vision=encoded, language=(((0,), ()), ((1,), (2,))))
    cases = [cases_of(plan, boundary)[0] for plan in (all_needed, put_off)]
    assert receive_twice(cases[0], cases[1], boundary) == source.size


class RecordingTransport:
    """Carries nothing; remembers the order of starts and waits."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def start(
        self, sends: Sequence[Message], receives: Sequence[Message], tag: int
    ) -> tuple[Pending, Pending]:
        self.log.append(f"start {tag}")
        return RecordedWait(self.log, f"sent {tag}"), RecordedWait(self.log, f"received {tag}")

    def close(self) -> None:
        self.log.append("close")


class RecordedWait:
    """Done as soon as it is waited for."""

    def __init__(self, log: list[str], entry: str) -> None:
        self._log, self._entry = log, entry

    def wait(self) -> None:
        self._log.append(self._entry)


ONE_ROW = Exchange(sends=((1, (0,)),))


def test_a_third_send_starts_after_the_oldest_of_two_is_received() -> None:
    transport = RecordingTransport()
    communicator = Communicator("under test", transport, WIDTH, CPU)
    for number in range(4):
        communicator.launch(number, ONE_ROW, torch.zeros(1, WIDTH))
    assert transport.log == ["start 0", "start 1", "sent 0", "start 2", "sent 1", "start 3"]
    communicator.drain()
    assert transport.log[6:] == ["sent 2", "sent 3"]


def test_exchanges_without_messages_do_not_count_as_sends_in_flight() -> None:
    transport = RecordingTransport()
    communicator = Communicator("under test", transport, WIDTH, CPU)
    for number, exchange in enumerate([ONE_ROW, Exchange(), Exchange(), ONE_ROW]):
        communicator.launch(number, exchange, torch.zeros(1, WIDTH))
    assert transport.log == ["start 0", "start 1", "start 2", "start 3"]


def test_a_step_starts_with_tags_of_its_own() -> None:
    transport = RecordingTransport()
    communicator = Communicator("under test", transport, WIDTH, CPU)
    for _ in range(2):
        communicator.launch(0, ONE_ROW, torch.zeros(1, WIDTH))
        communicator.drain()
    starts = [entry for entry in transport.log if entry.startswith("start")]
    assert len(set(starts)) == 2


def test_a_sender_really_waits_for_its_receiver() -> None:
    two_started, third_started = threading.Event(), threading.Event()
    boundary = boundary_of(Grid(), Grid())
    receive = Exchange(receives=((0, (0,)),), num_rows=1)

    def send_three(communicator: Communicator) -> bool:
        for number in range(3):
            communicator.launch(number, ONE_ROW, torch.ones(1, WIDTH))
            if number == 1:
                two_started.set()
        third_started.set()
        return True

    def receive_three(communicator: Communicator) -> bool:
        assert two_started.wait(timeout=20)
        waited = not third_started.wait(timeout=0.3)
        for number in range(3):
            communicator.post(number, receive)
            communicator.finish(number)
        return waited

    def run(place: int, store: Store) -> bool:
        work: Callable[[Communicator], bool] = [send_three, receive_three][place]
        with communicator_of(boundary, place, store) as communicator:
            return work(communicator)

    assert on_each_rank((0, 1), run) == [True, True]


@pytest.mark.parametrize("gradients", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(
    "name", ["dp2 to tp2", "cp2 to dp2", "tp2 dp2 to cp2 tp2 sp", "colocated dp2 as tp2"]
)
def test_the_peak_of_a_step_does_not_grow_with_its_microbatches(name: str, gradients: bool) -> None:
    """Every rank posts one ahead, finishes, and releases, as the executor does."""
    boundary = PAIRS[name]

    def peaks(microbatches: int) -> list[int]:
        plan = plan_in_order([5, 8] * microbatches, microbatches, boundary)
        cases = cases_of(plan, boundary)

        def run(place: int, store: Store) -> int:
            steps = boundary.exchanges(plan, place)
            exchanges = [step.backward if gradients else step.forward for step in steps]
            sends = sent(cases[0], place, gradients) is not None
            with communicator_of(boundary, place, store, gradients) as communicator:
                if not sends:
                    communicator.post(0, exchanges[0])
                for number, exchange in enumerate(exchanges):
                    if sends:
                        communicator.launch(number, exchange, sent(cases[number], place, gradients))
                    received = communicator.finish(number)
                    if not sends and number + 1 < len(exchanges):
                        communicator.post(number + 1, exchanges[number + 1])
                    communicator.release(received)
                return communicator.buffers.take_peak_bytes()

        return on_each_rank(edge_places(boundary), run)

    few, many = peaks(4), peaks(32)
    assert few == many
    assert max(few) > 0
