"""The two layouts of a boundary, derived from a step plan alone. See DESIGN, section 5.

Supported here: any dp on either side, tp replicated or sequence-parallel; the config
refuses the other axes until they are built.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from disagg_train.planner.step_plan import StepPlan
from disagg_train.topology.grid import Grid
from disagg_train.topology.layout import Holding, Layout, Span, shard_stream, stack_rows


@dataclass(frozen=True)
class Side:
    """One end of a boundary.

    Args:
        module: name of the module.
        grid: its ranks by axis.
        places: global rank of each rank of the module.
        sequence_parallel: whether tp splits the tokens again.
    """

    module: str
    grid: Grid
    places: tuple[int, ...]
    sequence_parallel: bool = False

    def stage_layout(self, stage: int, streams: Sequence[tuple[list[Span], int]]) -> Layout:
        """Lay each dp rank's stream (spans, length) out over the ranks of a pp stage."""
        grid = self.grid
        ranks = grid.stage(stage)
        parts = grid.tp if self.sequence_parallel else 1
        shards = [shard_stream(spans, length, parts) for spans, length in streams]
        holdings = []
        for rank in ranks:
            at = grid.coordinates(rank)
            holdings.append(shards[at["dp"]][at["tp"] % parts])
        return Layout(tuple(self.places[rank] for rank in ranks), tuple(holdings), self.replicas())

    def replicas(self) -> tuple[tuple[int, ...], ...]:
        """Return the stage's ranks that hold equal tokens, as indices into the stage."""
        stage = self.grid.stage(0)
        if self.sequence_parallel:
            return tuple((index,) for index in range(len(stage)))
        index_of = {rank: index for index, rank in enumerate(stage)}
        tp_groups = [group for group in self.grid.groups("tp") if group[0] in index_of]
        return tuple(tuple(index_of[rank] for rank in group) for group in tp_groups)


def source_layout(plan: StepPlan, side: Side, microbatch: int) -> Layout:
    """Return where the encoder's last stage holds its projector's output rows.

    A dp rank's rows are those of its samples, one after the other in assignment order.
    """
    offsets = plan.offsets(side.module)
    streams = []
    for lane in plan.assignment[side.module][microbatch]:
        lengths = [offsets[i + 1] - offsets[i] for i in lane]
        rows = stack_rows(lengths)
        spans = [Span(offsets[i], offsets[i + 1], row) for i, row in zip(lane, rows, strict=True)]
        streams.append((spans, sum(lengths)))
    return side.stage_layout(-1, streams)


def destination_layout(plan: StepPlan, encoder: str, side: Side, microbatch: int) -> Layout:
    """Return where the LLM's first stage needs ``encoder``'s tokens in its packed streams.

    Rows count positions of the rank's own part of its stream.
    """
    offsets = plan.offsets(encoder)
    streams = []
    for lane in plan.assignment[side.module][microbatch]:
        lengths = [plan.samples[i].sequence_tokens for i in lane]
        spans = []
        for i, first_row in zip(lane, stack_rows(lengths), strict=True):
            token = offsets[i]
            for slot in plan.samples[i].slots.get(encoder, ()):
                spans.append(Span(token, token + slot.count, first_row + slot.position))
                token += slot.count
        streams.append((spans, sum(lengths)))
    return side.stage_layout(0, streams)


def holding_of(layout: Layout, place: int) -> Holding | None:
    """Return what the process ``place`` holds on this side, or None where it has no part."""
    return layout.holdings[layout.places.index(place)] if place in layout.places else None


def source_rows(plan: StepPlan, side: Side, microbatch: int) -> tuple[int, ...]:
    """Return the rows of each source rank's output buffer, padding included."""
    offsets = plan.offsets(side.module)
    parts = side.grid.tp if side.sequence_parallel else 1
    totals = [
        sum(offsets[i + 1] - offsets[i] for i in lane)
        for lane in plan.assignment[side.module][microbatch]
    ]
    stage = side.grid.stage(-1)
    return tuple(-(-totals[side.grid.coordinates(rank)["dp"]] // parts) for rank in stage)
