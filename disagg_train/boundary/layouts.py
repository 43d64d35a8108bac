"""The two layouts of a boundary, derived from a step plan alone. See DESIGN, section 5."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from disagg_train.planner.step_plan import Slot, StepPlan
from disagg_train.schedule.graph import stage_name
from disagg_train.topology.grid import Grid
from disagg_train.topology.layout import Holding, Layout, Span
from disagg_train.topology.stream import Cut, Stream

FirstTokens = Mapping[int, int] | Sequence[int]
"""The id of each sample's first token."""

Shard = tuple[int, int, int]
"""A dp rank, and the cp and tp coordinates of a rank's part of its stream."""


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

    @cached_property
    def cut(self) -> Cut:
        """How a dp rank's sequences are cut over its ranks."""
        tp = self.grid.tp if self.sequence_parallel else 1
        return Cut(self.grid.cp, tp, self.packed)

    def streams(self, lanes: Sequence[Sequence[int]]) -> tuple[Stream, ...]:
        """Return the full stream of every dp rank, from its sequences' lengths."""
        return self.cut.streams(lanes, self.equal_lanes)

    def streams_of(
        self,
        held: Sequence[Sequence[int]],
        lengths: Callable[[Sequence[int]], list[int]],
        lanes: Sequence[int],
    ) -> dict[int, Stream]:
        """Return the full streams of some dp ranks.

        Args:
            held: the samples of every dp rank.
            lengths: of the sequences that samples make.
            lanes: the dp ranks whose streams are wanted.
        """
        if self.equal_lanes:  # every lane's length depends on all of them
            streams = self.streams([lengths(lane) for lane in held])
            return {lane: streams[lane] for lane in lanes}
        return {lane: self.cut.stream(lengths(held[lane])) for lane in lanes}

    @cached_property
    def replicas(self) -> tuple[tuple[int, ...], ...]:
        """A stage's ranks that hold equal tokens, as indices into the stage."""
        stage = self.grid.stage(0)
        if self.sequence_parallel:
            return tuple((index,) for index in range(len(stage)))
        index_of = {rank: index for index, rank in enumerate(stage)}
        tp_groups = [group for group in self.grid.groups("tp") if group[0] in index_of]
        return tuple(tuple(index_of[rank] for rank in group) for group in tp_groups)

    @property
    def has_replicas(self) -> bool:
        """Whether several ranks hold the same tokens."""
        return self.grid.tp > 1 and not self.sequence_parallel

    def stage_places(self, stage: int) -> tuple[int, ...]:
        """Return the global ranks of a stage (negative counts from the end)."""
        return tuple(self._lane_of[stage % self.grid.pp])

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

    def lane_of(self, stage: int, place: int) -> int | None:
        """Return the dp rank of a global rank in a stage; None where it is not on that stage."""
        return self._lane_of[stage % self.grid.pp].get(place)

    def rank_of(self, place: int) -> int:
        """Return the module's rank of one of its global ranks."""
        return self._rank_of[place]

    @cached_property
    def _rank_of(self) -> dict[int, int]:
        return {place: rank for rank, place in enumerate(self.places)}

    @cached_property
    def _lane_of(self) -> tuple[dict[int, int], ...]:
        return tuple(
            {self.places[rank]: self.grid.coordinates(rank)["dp"] for rank in self.grid.stage(pp)}
            for pp in range(self.grid.pp)
        )

    @cached_property
    def _lane_ranks(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Per pipeline rank and dp rank, the module's ranks."""
        found: list[list[list[int]]] = [
            [[] for _ in range(self.grid.dp)] for _ in range(self.grid.pp)
        ]
        for rank in range(self.grid.size):
            at = self.grid.coordinates(rank)
            found[at["pp"]][at["dp"]].append(rank)
        return tuple(tuple(map(tuple, lanes)) for lanes in found)

    def ranks_of(self, stage: int, part: "Part | None") -> tuple[int, ...]:
        """Return a stage's ranks in a part, or all; ascending."""
        if part is None:
            return self.grid.stage(stage % self.grid.pp)
        if part.place is not None:
            return (self.rank_of(part.place),)
        of_lane = self._lane_ranks[stage % self.grid.pp]
        return tuple(sorted(rank for lane in part.lanes for rank in of_lane[lane]))

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """Return which rows of its dp rank's stream each rank of the module has."""
        at = map(self.grid.coordinates, range(self.grid.size))
        return tuple((point["dp"], point["cp"], point["tp"] % self.cut.tp) for point in at)

    def holdings(
        self,
        ranks: Sequence[int],
        streams: Mapping[int, Stream],
        tokens: Mapping[int, Sequence[Span]],
    ) -> tuple[Holding, ...]:
        """Return what ranks of a stage hold of the tokens of dp ranks' full streams.

        Args:
            ranks: of the module.
            streams: per dp rank.
            tokens: per dp rank, at rows of its stream.
        """
        found: dict[Shard, Holding] = {}
        for shard in (self.shards[rank] for rank in ranks):
            if shard not in found:
                lane, cp_rank, tp_rank = shard
                spans = tokens[lane]
                held = streams[lane].holding(spans, cp_rank, tp_rank) if spans else Holding()
                found[shard] = held
        return tuple(found[self.shards[rank]] for rank in ranks)

    def layout(
        self, ranks: Sequence[int], holdings: tuple[Holding, ...], part: "Part | None"
    ) -> Layout:
        """Return the layout of a stage's ranks, all or those of a part, with their holdings."""
        places = tuple(self.places[rank] for rank in ranks)
        if part is None:
            return Layout(places, holdings, self.replicas)
        alike: dict[Shard, list[int]] = {}
        for index, rank in enumerate(ranks):
            alike.setdefault(self.shards[rank], []).append(index)
        return Layout(places, holdings, tuple(map(tuple, alike.values())))


@dataclass(frozen=True)
class Part:
    """What is looked at of one side of a microbatch.

    Args:
        lanes: dp ranks.
        samples: whose tokens matter.
        place: the global rank, where it is the only one of its lane that matters.
    """

    lanes: tuple[int, ...]
    samples: frozenset[int]
    place: int | None = None


def source_stream(plan: StepPlan, side: Side, microbatch: int, lane: int) -> Stream:
    """Return an encoder's dp rank's stream of projector output: one sequence per input (image)."""
    return _source_streams(plan, side, microbatch, (lane,))[lane]


def _source_streams(
    plan: StepPlan, side: Side, microbatch: int, lanes: Sequence[int]
) -> dict[int, Stream]:
    def lengths(lane: Sequence[int]) -> list[int]:
        slots = (slot for i in lane for slot in plan.samples[i].slots.get(side.module, ()))
        return [slot.count + side.extra_tokens for slot in slots]

    return side.streams_of(plan.assignment[side.module][microbatch], lengths, lanes)


def source_of(
    plan: StepPlan,
    side: Side,
    microbatches: Sequence[int],
    part: Part | None = None,
    first_tokens: FirstTokens | None = None,
) -> tuple[Layout, tuple[int, ...]]:
    """Return where the encoder's last stage holds its projector's output rows.

    Beside the layout it returns the rows of each rank's outputs, padding included. A dp rank's
    sequences are the inputs of its samples, in assignment order.

    Args:
        plan: the step plan.
        side: the encoder's.
        microbatches: whose outputs lie one after the other.
        part: what to look at; all ranks and samples where not given.
        first_tokens: of each sample that is looked at; as the plan numbers them where not given.
    """
    ids = plan.offsets(side.module) if first_tokens is None else first_tokens
    ranks, lanes = side.ranks_of(-1, part), _lanes(side, part)
    spans: list[list[Span]] = [[] for _ in ranks]
    first_rows = dict.fromkeys(lanes, 0)
    for microbatch in microbatches:
        streams = _source_streams(plan, side, microbatch, lanes)
        tokens = {
            lane: _outputs(plan, side, microbatch, lane, stream, part, ids)
            for lane, stream in streams.items()
        }
        held = side.holdings(ranks, streams, tokens)
        for rank, found, holding in zip(ranks, spans, held, strict=True):
            row = first_rows[side.shards[rank][0]]
            found += [Span(span.start, span.stop, row + span.row) for span in holding.spans]
        for lane, stream in streams.items():
            first_rows[lane] += stream.num_shard_rows
    holdings = tuple(Holding.of(found) if found else Holding() for found in spans)
    rows = tuple(first_rows[side.shards[rank][0]] for rank in ranks)
    return side.layout(ranks, holdings, part), rows


def _outputs(
    plan: StepPlan,
    side: Side,
    microbatch: int,
    lane: int,
    stream: Stream,
    part: Part | None,
    first_tokens: FirstTokens,
) -> list[Span]:
    """Return the tokens of a dp rank's inputs, at rows of its stream."""
    held = plan.held(side.module, microbatch, lane)
    if part is not None and part.samples.isdisjoint(held):
        return []
    spans, starts = [], iter(stream.starts)
    for i in held:
        slots = plan.samples[i].slots.get(side.module, ())
        rows = [next(starts) for _ in slots]
        if part is None or i in part.samples:
            spans += _spans(slots, rows, first_tokens[i])
    return spans


def _spans(slots: Sequence[Slot], rows: Sequence[int], first_token: int) -> list[Span]:
    """Return where a sample's tokens are, whose slots start at some rows."""
    starts = accumulate((slot.count for slot in slots), initial=first_token)
    return [
        Span(start, start + slot.count, row)
        for start, slot, row in zip(starts, slots, rows, strict=False)
    ]


def _lanes(side: Side, part: Part | None) -> Sequence[int]:
    return range(side.grid.dp) if part is None else part.lanes


def destination_stream(plan: StepPlan, side: Side, microbatch: int, lane: int) -> Stream:
    """Return one of the LLM's dp ranks' stream of fused sequences: one sequence per sample."""
    return _destination_streams(plan, side, microbatch, (lane,))[lane]


def _destination_streams(
    plan: StepPlan, side: Side, microbatch: int, lanes: Sequence[int]
) -> dict[int, Stream]:
    def lengths(lane: Sequence[int]) -> list[int]:
        return [plan.samples[i].sequence_tokens for i in lane]

    return side.streams_of(plan.assignment[side.module][microbatch], lengths, lanes)


def destination_layout(
    plan: StepPlan,
    encoder: str,
    side: Side,
    microbatch: int,
    part: Part | None = None,
    first_tokens: FirstTokens | None = None,
) -> Layout:
    """Return where the LLM's first stage needs ``encoder``'s tokens.

    Rows count positions of the rank's own part of its stream.

    Args:
        plan: the step plan.
        encoder: name of the encoder.
        side: the LLM's.
        microbatch: of the LLM.
        part: what to look at; all ranks and samples where not given.
        first_tokens: of each sample that is looked at; as the plan numbers them where not given.
    """
    ids, lanes = plan.offsets(encoder) if first_tokens is None else first_tokens, _lanes(side, part)
    streams, tokens = _destination_streams(plan, side, microbatch, lanes), {}
    for lane in lanes:
        spans = []
        held = plan.held(side.module, microbatch, lane)
        for i, first_row in zip(held, streams[lane].starts, strict=False):
            if part is not None and i not in part.samples:
                continue
            slots = plan.samples[i].slots.get(encoder, ())
            spans += _spans(slots, [first_row + slot.position for slot in slots], ids[i])
        tokens[lane] = spans
    ranks = side.ranks_of(0, part)
    return side.layout(ranks, side.holdings(ranks, streams, tokens), part)


def holding_of(layout: Layout, place: int) -> Holding | None:
    """Return what the process ``place`` holds on this side, or None where it has no part."""
    return layout.holdings[layout.places.index(place)] if place in layout.places else None
