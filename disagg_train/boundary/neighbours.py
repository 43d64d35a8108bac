"""What one rank's part of an exchange depends on: a few lanes of either side, a few samples.

A rank sends tokens of its own lane's samples, or receives those at its own rows. Who of a group
of replicas sends or receives which of them depends on everything that this group has to send or
to receive, and so on the other samples of the lanes at the other end; beyond these nothing
matters. A job of 1,024 ranks thereby asks a rank to look at a handful of them.
"""

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate

from disagg_train.boundary.layouts import Part, Side, destination_stream
from disagg_train.planner.step_plan import StepPlan


def neighbours(
    plan: StepPlan,
    source: Side,
    destination: Side,
    microbatch: int,
    drawn_on: Sequence[int],
    place: int,
) -> tuple[Part, Part]:
    """Return what matters to a rank of the source and of the destination.

    Args:
        plan: the step plan.
        source: the encoder.
        destination: the LLM.
        microbatch: of the destination.
        drawn_on: the source's microbatches that it may draw on.
        place: global rank of the rank; it is on either side or on both.
    """
    encoder, language = source.module, destination.module
    shares = source.has_replicas or destination.has_replicas

    def feeds(sample: int) -> bool:
        return encoder in plan.samples[sample].slots

    def held_by_source(lane: int) -> set[int]:
        seats, dp = plan.seats(language), plan.dp(language)
        held = (i for number in drawn_on for i in plan.held(encoder, number, lane))
        return {i for i in held if seats[i] // dp == microbatch and feeds(i)}

    def held_by_destination(lane: int) -> set[int]:
        return {i for i in plan.held(language, microbatch, lane) if feeds(i)}

    source_lane, destination_lane = source.lane_of(-1, place), destination.lane_of(0, place)
    mine = set() if source_lane is None else held_by_source(source_lane)
    theirs: set[int] = set()
    if destination_lane is not None:
        theirs = (
            held_by_destination(destination_lane)
            if shares
            else _at_rows_of(plan, encoder, destination, microbatch, place)
        )
    samples = own = mine | theirs
    if source.has_replicas:
        for lane in _lanes(plan, encoder, own, drawn_on):
            samples = samples | held_by_source(lane)
    if destination.has_replicas:
        for lane in _lanes(plan, language, own, (microbatch,)):
            samples = samples | held_by_destination(lane)
    source_lanes = _lanes(plan, encoder, samples - mine, drawn_on, source_lane)
    destination_lanes = _lanes(plan, language, samples - theirs, (microbatch,), destination_lane)
    is_alone = source_lane is None and not shares  # what it takes depends on no other rank
    return (
        Part(source_lanes, frozenset(samples)),
        Part(destination_lanes, frozenset(samples), place if is_alone else None),
    )


def first_tokens(plan: StepPlan, encoder: str, samples: Collection[int]) -> Mapping[int, int]:
    """Number the tokens of some samples in the order of the plan; return each one's first token.

    Routes depend on the order of token ids, not on the ids, and to number a few samples' tokens
    takes no look at all the others.
    """
    ordered = sorted(samples)
    counts = (plan.samples[i].tokens(encoder) for i in ordered)
    return dict(zip(ordered, accumulate(counts, initial=0), strict=False))


def _lanes(
    plan: StepPlan,
    module: str,
    samples: Collection[int],
    microbatches: Sequence[int],
    own: int | None = None,
) -> tuple[int, ...]:
    """Return the dp ranks that hold samples in some microbatches of a module, and ``own``."""
    lanes = set() if own is None else {own}
    if samples:
        seats, dp = plan.seats(module), plan.dp(module)
        lanes |= {seats[i] % dp for i in samples if seats[i] // dp in microbatches}
    return tuple(sorted(lanes))


def _at_rows_of(plan: StepPlan, encoder: str, side: Side, microbatch: int, place: int) -> set[int]:
    """Return the samples of which a rank of the LLM holds some of the encoder's tokens."""
    lane, cp_rank, tp_rank = side.shards[side.rank_of(place)]
    stream = destination_stream(plan, side, microbatch, lane)
    runs = stream.runs(cp_rank, tp_rank)
    starts = [start for start, _ in runs]
    found = set()
    for i, first_row in zip(plan.held(side.module, microbatch, lane), stream.starts, strict=False):
        for slot in plan.samples[i].slots.get(encoder, ()):
            row = first_row + slot.position
            before = bisect_right(starts, row + slot.count - 1) - 1
            if before >= 0 and runs[before][1] > row:
                found.add(i)
    return found
