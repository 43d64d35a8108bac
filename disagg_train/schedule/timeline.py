"""When every rank runs every op, and what follows from it: step time, bubbles, peak memory."""

from dataclasses import dataclass
from functools import cached_property

from disagg_train.metrics.records import RankReport, Span
from disagg_train.schedule.graph import StageGraph
from disagg_train.schedule.ops import Op, OpKind

_FORWARD = (OpKind.FORWARD, OpKind.EVALUATE, OpKind.RUN_AHEAD)


@dataclass(frozen=True, slots=True)
class Slice:
    """An op with its begin and end, in seconds since the step began.

    Forwards, backwards and syncs begin when the last of their ranks is ready; transfers begin
    when the rank comes to them, so theirs holds the wait.
    """

    op: Op
    begin_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        """How long it takes."""
        return self.end_s - self.begin_s


@dataclass(frozen=True)
class Timeline:
    """One simulated step.

    Args:
        graph: the stage graph.
        alike: per rank, the first rank that does the same at the same times.
        slices: per rank, its ops in order.
        peak_bytes: per rank, the most activations kept at once for their backwards. What a
            stage without a backward computes is let go at once and not counted; nor are
            weights, received rows and what lives only inside one op.
    """

    graph: StageGraph
    alike: tuple[int, ...]
    slices: tuple[tuple[Slice, ...], ...]
    peak_bytes: tuple[float, ...]

    @cached_property
    def step_time_s(self) -> float:
        """When the last rank is done."""
        return max((ops[-1].end_s for ops in self.slices if ops), default=0.0)

    @cached_property
    def busy_s(self) -> tuple[float, ...]:
        """Per rank, seconds of forwards and backwards, of all stages that it hosts."""
        of_kind = {
            rank: sum(each.duration_s for each in self.slices[rank] if each.op.kind.is_compute)
            for rank in set(self.alike)
        }
        return tuple(of_kind[first] for first in self.alike)

    @cached_property
    def bubble(self) -> tuple[float, ...]:
        """Per rank, the part of the step in which it runs no forward or backward."""
        step_s = self.step_time_s
        return tuple(1.0 - busy_s / step_s if step_s else 0.0 for busy_s in self.busy_s)

    @cached_property
    def places(self) -> dict[str, tuple[int, ...]]:
        """Per module, the global ranks that host any of its stages."""
        found: dict[str, set[int]] = {}
        for node in self.graph.nodes.values():
            found.setdefault(node.module, set()).update(node.places)
        return {module: tuple(sorted(places)) for module, places in found.items()}

    @property
    def module_bubble(self) -> dict[str, float]:
        """Per module, the mean bubble of its ranks; colocated modules share their ranks'."""
        return {module: mean(self.bubble, places) for module, places in self.places.items()}

    @property
    def module_busy_s(self) -> dict[str, float]:
        """Per module, the mean seconds that its ranks compute, colocated modules included."""
        return {module: mean(self.busy_s, places) for module, places in self.places.items()}

    @cached_property
    def kinds(self) -> dict[int, tuple[int, ...]]:
        """Per first rank of a kind, all ranks of that kind, ascending."""
        found: dict[int, list[int]] = {}
        for rank, first in enumerate(self.alike):
            found.setdefault(first, []).append(rank)
        return {first: tuple(ranks) for first, ranks in found.items()}

    def reports(self) -> list[RankReport]:
        """Return what one rank of every kind would report of this step, for traces and pictures."""
        return [
            RankReport(
                place=rank,
                modules=tuple(stage.module for stage in self.graph.stages_of(rank)),
                spans=[span_of(each.op, each.begin_s, each.end_s) for each in self.slices[rank]],
            )
            for rank in self.kinds
        ]


def mean(values: tuple[float, ...], places: tuple[int, ...]) -> float:
    """Return the mean value of some ranks."""
    return sum(values[place] for place in places) / len(places)


def span_of(op: Op, begin_s: float, end_s: float) -> Span:
    """Return an op's span, as runs report it."""
    return Span(str(op), op.module or op.boundary, _category(op.kind), begin_s, end_s)


def _category(kind: OpKind) -> str:
    if kind in _FORWARD:
        return "forward"
    if kind.is_compute:
        return "backward"
    return "boundary" if kind.is_send or kind.is_recv else "update"
