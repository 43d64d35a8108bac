"""The plain truth about a boundary, token by token: what each process has at each row.

Written from DESIGN, section 5, without spans, intervals or any code of ``boundary/``.
"""

from collections.abc import Mapping

from disagg_train.boundary.layouts import Side
from disagg_train.planner.step_plan import StepPlan

Stream = list[int | None]
"""Token at each row; None at text and at padding."""

Buffers = Mapping[int, Stream]
"""The stream of every process of one side."""


def source_buffers(plan: StepPlan, side: Side, microbatch: int) -> Buffers:
    """Return the projector's output rows of every rank of the source's last stage."""
    tokens = _tokens_of_samples(plan, side.module)
    streams = [
        [token for i in lane for token in tokens[i]]
        for lane in plan.assignment[side.module][microbatch]
    ]
    return _over_ranks(side, side.grid.pp - 1, streams)


def destination_buffers(plan: StepPlan, encoder: str, side: Side, microbatch: int) -> Buffers:
    """Return the fused positions of every rank of the destination's first stage."""
    tokens = _tokens_of_samples(plan, encoder)
    streams = []
    for lane in plan.assignment[side.module][microbatch]:
        stream: Stream = []
        for i in lane:
            stream += _fused(plan, encoder, i, tokens[i])
        streams.append(stream)
    return _over_ranks(side, 0, streams)


def groups(side: Side, stage: int) -> list[tuple[int, ...]]:
    """Return the places that hold equal tokens: tp groups, or single ranks under sp."""
    together: dict[tuple[int, ...], list[int]] = {}
    for rank, place in enumerate(side.places):
        at = side.grid.coordinates(rank)
        if at["pp"] == stage:
            key = (at["dp"], at["tp"]) if side.sequence_parallel else (at["dp"],)
            together.setdefault(key, []).append(place)
    return [tuple(places) for places in together.values()]


def tokens_in(stream: Stream) -> set[int]:
    """Return the tokens of a stream."""
    return {token for token in stream if token is not None}


def _tokens_of_samples(plan: StepPlan, encoder: str) -> list[list[int]]:
    tokens, following = [], 0
    for sample in plan.samples:
        count = sum(slot.count for slot in sample.slots.get(encoder, ()))
        tokens.append(list(range(following, following + count)))
        following += count
    return tokens


def _fused(plan: StepPlan, encoder: str, index: int, tokens: list[int]) -> Stream:
    sample = plan.samples[index]
    sequence: Stream = [None] * sample.sequence_tokens
    left = iter(tokens)
    for slot in sample.slots.get(encoder, ()):
        for position in range(slot.position, slot.position + slot.count):
            sequence[position] = next(left)
    return sequence


def _over_ranks(side: Side, stage: int, streams: list[Stream]) -> Buffers:
    buffers = {}
    for rank, place in enumerate(side.places):
        at = side.grid.coordinates(rank)
        if at["pp"] == stage:
            buffers[place] = _shard(side, streams[at["dp"]], at["tp"])
    return buffers


def _shard(side: Side, stream: Stream, tp_rank: int) -> Stream:
    if not side.sequence_parallel:
        return list(stream)
    padded = list(stream)
    while len(padded) % side.grid.tp:
        padded.append(None)
    rows = len(padded) // side.grid.tp
    return padded[tp_rank * rows : (tp_rank + 1) * rows]
