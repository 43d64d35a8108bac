"""The plain truth about a boundary, token by token: what each process has at each row.

Written from DESIGN, section 5, without spans, intervals or any code of ``boundary/``.
"""

from collections.abc import Callable, Mapping, Sequence
from math import lcm

from disagg_train.boundary.layouts import Side
from disagg_train.planner.step_plan import StepPlan

Stream = list[int | None]
"""Token at each row; None at text and at padding."""

Buffers = Mapping[int, Stream]
"""The stream of every process of one side."""

Lanes = list[list[Stream]]
"""The sequences of each dp lane."""


def source_buffers(plan: StepPlan, side: Side, microbatch: int) -> Buffers:
    """Return the projector's output rows of every rank of the source's last stage.

    Class tokens are computed behind every image, but are nobody's tokens.
    """
    images, class_tokens = _tokens_of_images(plan, side.module), [None] * side.extra_tokens
    lanes = [
        [[*image, *class_tokens] for i in lane for image in images[i]]
        for lane in plan.assignment[side.module][microbatch]
    ]
    return _over_ranks(side, side.grid.pp - 1, lanes)


def destination_buffers(plan: StepPlan, encoder: str, side: Side, microbatch: int) -> Buffers:
    """Return the fused positions of every rank of the destination's first stage."""
    images = _tokens_of_images(plan, encoder)

    def fused(i: int) -> Stream:
        sequence: Stream = [None] * plan.samples[i].sequence_tokens
        for slot, image in zip(_slots(plan, i, encoder), images[i], strict=True):
            for n, token in enumerate(image):
                sequence[slot.position + n] = token
        return sequence

    return _over_ranks(side, 0, _sequences(plan, side, microbatch, fused))


def text_buffers(plan: StepPlan, side: Side, microbatch: int) -> Buffers:
    """Return 1 at every row of text and None elsewhere, on the destination's first stage."""

    def text_of(i: int) -> Stream:
        sequence: Stream = [1] * plan.samples[i].sequence_tokens
        for encoder in plan.samples[i].slots:
            for slot in _slots(plan, i, encoder):
                for n in range(slot.count):
                    sequence[slot.position + n] = None
        return sequence

    return _over_ranks(side, 0, _sequences(plan, side, microbatch, text_of))


def groups(side: Side, stage: int) -> list[tuple[int, ...]]:
    """Return the places that hold equal tokens: tp groups, or single ranks under sp."""
    together: dict[tuple[int, ...], list[int]] = {}
    for rank, place in enumerate(side.places):
        at = side.grid.coordinates(rank)
        if at["pp"] == stage:
            key = (at["dp"], at["cp"], at["tp"] if side.sequence_parallel else 0)
            together.setdefault(key, []).append(place)
    return [tuple(places) for places in together.values()]


def tokens_in(stream: Stream) -> set[int]:
    """Return the tokens of a stream."""
    return {token for token in stream if token is not None}


def _slots(plan: StepPlan, sample: int, encoder: str) -> Sequence:
    return plan.samples[sample].slots.get(encoder, ())


def _tokens_of_images(plan: StepPlan, encoder: str) -> list[list[list[int]]]:
    """Return, per sample, the token ids of each of its images; ids follow sampler order."""
    samples, following = [], 0
    for i in range(len(plan.samples)):
        images = []
        for slot in _slots(plan, i, encoder):
            images.append(list(range(following, following + slot.count)))
            following += slot.count
        samples.append(images)
    return samples


def _sequences(
    plan: StepPlan, side: Side, microbatch: int, sequence_of: Callable[[int], Stream]
) -> Lanes:
    lanes = plan.assignment[side.module][microbatch]
    return [[sequence_of(i) for i in lane] for lane in lanes]


def _over_ranks(side: Side, stage: int, lanes: Lanes) -> Buffers:
    buffers = {}
    for rank, place in enumerate(side.places):
        at = side.grid.coordinates(rank)
        if at["pp"] == stage:
            cut = _packed if side.packed else _padded
            buffers[place] = cut(side, lanes, at["dp"], at["cp"], at["tp"])
    return buffers


def _packed(side: Side, lanes: Lanes, dp_rank: int, cp_rank: int, tp_rank: int) -> Stream:
    """Cut every sequence over cp, lay the pieces end to end, pad the tail, cut over tp."""
    streams = [_packed_stream(lane, side.grid.cp, cp_rank) for lane in lanes]
    stream = streams[dp_rank]
    if side.equal_lanes:
        stream = stream + [None] * (max(len(other) for other in streams) - len(stream))
    if not side.sequence_parallel:
        return stream
    multiple = lcm(2, side.grid.tp) if side.grid.cp > 1 else side.grid.tp
    return _contiguous(_rounded_up(stream, multiple), side.grid.tp, tp_rank)


def _packed_stream(sequences: list[Stream], cp: int, cp_rank: int) -> Stream:
    stream: Stream = []
    for sequence in sequences:
        padded = _rounded_up(sequence, 2 * cp) if cp > 1 else sequence
        stream += _zigzag(padded, cp, cp_rank)
    return stream


def _padded(side: Side, lanes: Lanes, dp_rank: int, cp_rank: int, tp_rank: int) -> Stream:
    """Pad all sequences to one length, cut each over cp, then over tp; batch-major rows."""
    tp = side.grid.tp if side.sequence_parallel else 1
    multiple = (2 * side.grid.cp if side.grid.cp > 1 else 1) * tp
    peers = lanes if side.equal_lanes else [lanes[dp_rank]]
    longest = max((len(sequence) for lane in peers for sequence in lane), default=0)
    length = -(-longest // multiple) * multiple
    sequences = list(lanes[dp_rank])
    while len(sequences) < max(len(lane) for lane in peers):
        sequences.append([])
    rows: Stream = []
    for sequence in sequences:
        whole = sequence + [None] * (length - len(sequence))
        piece = _zigzag(whole, side.grid.cp, cp_rank)
        rows += _contiguous(piece, tp, tp_rank if tp > 1 else 0)
    return rows


def _zigzag(sequence: Stream, cp: int, cp_rank: int) -> Stream:
    """Return chunks r and 2cp-1-r of 2cp equal ones."""
    if cp == 1:
        return list(sequence)
    assert len(sequence) % (2 * cp) == 0
    chunk_tokens = len(sequence) // (2 * cp)
    mine = (cp_rank, 2 * cp - 1 - cp_rank)
    return [token for at, token in enumerate(sequence) if at // chunk_tokens in mine]


def _rounded_up(stream: Stream, multiple: int) -> Stream:
    padded = list(stream)
    while len(padded) % multiple:
        padded.append(None)
    return padded


def _contiguous(stream: Stream, parts: int, part: int) -> Stream:
    assert len(stream) % parts == 0
    rows = len(stream) // parts
    return stream[part * rows : (part + 1) * rows]
