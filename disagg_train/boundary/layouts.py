"""The two layouts of a boundary, derived from a step plan alone. See DESIGN, section 5."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from disagg_train.planner.step_plan import StepPlan
from disagg_train.schedule.graph import stage_name
from disagg_train.topology.grid import Grid
from disagg_train.topology.layout import Holding, Layout, Span
from disagg_train.topology.stream import Cut, Stream


@dataclass(frozen=True)
class Side:
    """One end of a boundary.

    Args:
        module: name of the module.
        grid: its ranks by axis.
        places: global rank of each rank of the module.
        sequence_parallel: whether tp splits the tokens again.
        packed: whether sequences lie one after the other, or are padded to one length.
        equal_lanes: whether all dp ranks have equally many rows, as experts need.
        vpp: stages per pipeline rank; stage k sits on the pp rank ``k % pp``.
        extra_tokens: of an encoder, tokens at the end of every input that belong to no layout:
            class tokens.
    """

    module: str
    grid: Grid
    places: tuple[int, ...]
    sequence_parallel: bool = False
    packed: bool = True
    equal_lanes: bool = False
    vpp: int = 1
    extra_tokens: int = 0

    @property
    def num_stages(self) -> int:
        """Stages of the module."""
        return self.grid.pp * self.vpp

    def stage_name(self, stage: int) -> str:
        """Return a stage's name (negative counts from the end)."""
        return stage_name(self.module, stage % self.num_stages, self.num_stages)

    @property
    def cut(self) -> Cut:
        """How a dp rank's sequences are cut over its ranks."""
        tp = self.grid.tp if self.sequence_parallel else 1
        return Cut(self.grid.cp, tp, self.packed)

    def streams(self, lanes: Sequence[Sequence[int]]) -> tuple[Stream, ...]:
        """Return the full stream of every dp rank, from its sequences' lengths."""
        return self.cut.streams(lanes, self.equal_lanes)

    @cached_property
    def replicas(self) -> tuple[tuple[int, ...], ...]:
        """A stage's ranks that hold equal tokens, as indices into the stage."""
        stage = self.grid.stage(0)
        if self.sequence_parallel:
            return tuple((index,) for index in range(len(stage)))
        index_of = {rank: index for index, rank in enumerate(stage)}
        tp_groups = [group for group in self.grid.groups("tp") if group[0] in index_of]
        return tuple(tuple(index_of[rank] for rank in group) for group in tp_groups)

    def stage_places(self, stage: int) -> tuple[int, ...]:
        """Return the global ranks of a stage (negative counts from the end)."""
        return tuple(self.places[rank] for rank in self.grid.stage(stage % self.grid.pp))

    def replicas_of(self, stage: int, place: int) -> tuple[int, ...]:
        """Return the global ranks of a stage that hold the same tokens as ``place``.

        Empty where ``place`` is not on that stage, or is alone with its tokens.
        """
        stage_places = self.stage_places(stage)
        for group in self.replicas:
            places = tuple(stage_places[index] for index in group)
            if place in places and len(places) > 1:
                return places
        return ()

    def stage_layout(
        self, stage: int, streams: Sequence[Stream], tokens: Sequence[Sequence[Span]]
    ) -> Layout:
        """Lay the tokens of every dp rank's full stream out over the ranks of a stage."""
        found: dict[tuple[int, int, int], Holding] = {}
        holdings = []
        for rank in self.grid.stage(stage % self.grid.pp):
            at = self.grid.coordinates(rank)
            dp_rank, cp_rank, tp_rank = key = at["dp"], at["cp"], at["tp"] % self.cut.tp
            if key not in found:
                found[key] = streams[dp_rank].holding(tokens[dp_rank], cp_rank, tp_rank)
            holdings.append(found[key])
        return Layout(self.stage_places(stage), tuple(holdings), self.replicas)


def source_streams(plan: StepPlan, side: Side, microbatch: int) -> tuple[Stream, ...]:
    """Return the encoder's streams of projector output: one sequence per input (image)."""
    return side.streams(
        [
            [
                slot.count + side.extra_tokens
                for i in lane
                for slot in plan.samples[i].slots.get(side.module, ())
            ]
            for lane in plan.assignment[side.module][microbatch]
        ]
    )


def source_layout(plan: StepPlan, side: Side, microbatches: Sequence[int]) -> Layout:
    """Return where the encoder's last stage holds its projector's output rows.

    Outputs of several microbatches lie one after the other. A dp rank's sequences are the
    inputs of its samples, in assignment order.
    """
    layouts = [_output_layout(plan, side, microbatch) for microbatch in microbatches]
    if len(layouts) == 1:
        return layouts[0]
    spans: list[list[Span]] = [[] for _ in layouts[0].places]
    first_rows = [0] * len(spans)
    for microbatch, layout in zip(microbatches, layouts, strict=True):
        for found, holding, row in zip(spans, layout.holdings, first_rows, strict=True):
            found += [Span(span.start, span.stop, row + span.row) for span in holding.spans]
        counts = source_rows(plan, side, [microbatch])
        first_rows = [row + count for row, count in zip(first_rows, counts, strict=True)]
    return Layout(layouts[0].places, tuple(map(Holding.of, spans)), layouts[0].replicas)


def _output_layout(plan: StepPlan, side: Side, microbatch: int) -> Layout:
    offsets, streams = plan.offsets(side.module), source_streams(plan, side, microbatch)
    tokens = []
    for lane, stream in zip(plan.assignment[side.module][microbatch], streams, strict=True):
        spans, starts = [], iter(stream.starts)
        for i in lane:
            token = offsets[i]
            for slot in plan.samples[i].slots.get(side.module, ()):
                spans.append(Span(token, token + slot.count, next(starts)))
                token += slot.count
        tokens.append(spans)
    return side.stage_layout(-1, streams, tokens)


def destination_streams(plan: StepPlan, side: Side, microbatch: int) -> tuple[Stream, ...]:
    """Return the LLM's streams of fused sequences: one sequence per sample."""
    return side.streams(
        [
            [plan.samples[i].sequence_tokens for i in lane]
            for lane in plan.assignment[side.module][microbatch]
        ]
    )


def destination_layout(plan: StepPlan, encoder: str, side: Side, microbatch: int) -> Layout:
    """Return where the LLM's first stage needs ``encoder``'s tokens.

    Rows count positions of the rank's own part of its stream.
    """
    offsets, streams = plan.offsets(encoder), destination_streams(plan, side, microbatch)
    tokens = []
    for lane, stream in zip(plan.assignment[side.module][microbatch], streams, strict=True):
        spans = []
        for i, first_row in zip(lane, stream.starts, strict=False):
            token = offsets[i]
            for slot in plan.samples[i].slots.get(encoder, ()):
                spans.append(Span(token, token + slot.count, first_row + slot.position))
                token += slot.count
        tokens.append(spans)
    return side.stage_layout(0, streams, tokens)


def holding_of(layout: Layout, place: int) -> Holding | None:
    """Return what the process ``place`` holds on this side, or None where it has no part."""
    return layout.holdings[layout.places.index(place)] if place in layout.places else None


def source_rows(plan: StepPlan, side: Side, microbatches: Iterable[int]) -> tuple[int, ...]:
    """Return the rows of each source rank's outputs of some microbatches, padding included."""
    streams = [source_streams(plan, side, microbatch) for microbatch in microbatches]
    lanes = [side.grid.coordinates(rank)["dp"] for rank in side.grid.stage(-1)]
    return tuple(sum(each[lane].num_shard_rows for each in streams) for lane in lanes)
