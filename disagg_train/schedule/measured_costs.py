"""What ops cost in a run, from the spans that its ranks reported."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from disagg_train.errors import PlanError
from disagg_train.metrics.records import RankReport, Span
from disagg_train.metrics.trace import START_STEP
from disagg_train.schedule.costs import CostModel, TransferCost, Values
from disagg_train.schedule.graph import StageGraph
from disagg_train.schedule.ops import MOST_SENDS, Op, OpKind, op_of

Spans = Mapping[Op, Span]
"""What one rank did in one step."""


@dataclass(frozen=True)
class OpTime:
    """What an op cost in one step.

    Args:
        op: the op; one run ahead is of the step after.
        lane: of the stage, for what its lanes run each for themselves; else 0.
        seconds: without the waits for partners that came late.
    """

    op: Op
    lane: int
    seconds: float


_Samples = dict[tuple[OpKind, str], dict[int, list[float]]]
"""Seconds seen, by op kind and subject, then by microbatch."""


def measured_costs(
    steps: Iterable[Sequence[RankReport]], graph: StageGraph, num_microbatches: int
) -> CostModel:
    """Return the medians of a run over its steps and lanes.

    The last rank of a lane to come shows what an op costs; its partners' spans hold their
    wait for it. A transfer counts from the last launch, where the receiver waited for that.
    Clocks of different nodes must agree as well as the transfers are to be known.

    Args:
        steps: the reports of some steps, of all ranks or of some of them.
        graph: the stage graph that was run.
        num_microbatches: of the step to simulate. If the run had as many, each has its own
            costs; else all have the same.

    Raises:
        PlanError: the run recorded no op, or ops of stages that the graph does not have.
    """
    seconds: _Samples = defaultdict(lambda: defaultdict(list))
    transfers: dict[tuple[OpKind, str], list[float]] = defaultdict(list)
    starts: list[float] = []
    for reports in steps:
        for found in op_times(reports, graph):
            op = found.op
            kind = OpKind.FORWARD if op.kind is OpKind.RUN_AHEAD else op.kind
            seconds[kind, op.module or op.boundary][op.microbatch].append(found.seconds)
        for sent in transfer_times(reports, graph):
            transfers[sent.op.kind, sent.op.boundary].append(sent.seconds)
        starts.append(start_s(reports))
    if not seconds:
        raise PlanError("the run recorded no ops; run it with train.trace_steps of 1 or more")
    return CostModel(
        {key: _values(samples, num_microbatches) for key, samples in seconds.items()},
        {key: TransferCost((median(samples),)) for key, samples in transfers.items()},
        start_s=median(starts),
    )


def op_times(reports: Sequence[RankReport], graph: StageGraph) -> Iterator[OpTime]:
    """Return what every op of a step cost, but receives and sends that may have waited.

    Args:
        reports: of all ranks, or of some of them.
        graph: the stage graph that was run.

    Raises:
        PlanError: the reports have ops of stages that the graph does not have.
    """
    step = {report.place: _spans(report, graph) for report in reports}
    ops = {op for spans in step.values() for op in spans}
    for op in ops:
        if not _shows_its_cost(op, ops):
            continue
        for lane, ranks in enumerate(_together(op, graph, step)):
            if there := [step[rank] for rank in ranks if op in step.get(rank, {})]:
                yield OpTime(op, lane if op.kind.is_compute else 0, _duration_s(op, there))


def transfer_times(reports: Sequence[RankReport], graph: StageGraph) -> Iterator[OpTime]:
    """Return the seconds from a send's last launch to its arrival at ranks that waited for it.

    Args:
        reports: of all ranks, or of some of them.
        graph: the stage graph that was run.

    Raises:
        PlanError: the reports have ops of stages that the graph does not have.
    """
    step = {report.place: _spans(report, graph) for report in reports}
    launched_s = _last_launches_s(step)
    for op, span in ((op, span) for spans in step.values() for op, span in spans.items()):
        if op.kind.is_recv:
            kind = OpKind.SEND_BACKWARD if op.kind.is_gradient else OpKind.SEND_FORWARD
            last_s = launched_s.get((kind, op.boundary, op.microbatch))
            if last_s is not None and span.begin_s <= last_s <= span.end_s:
                send = Op(kind, "", op.microbatch, op.boundary)
                yield OpTime(send, 0, span.end_s - last_s)


def start_s(reports: Sequence[RankReport]) -> float:
    """Return the seconds from the first rank's start of a step to the last rank's first op."""
    starts = [span for report in reports for span in report.spans if span.name == START_STEP]
    if not starts:
        return 0.0
    return max(span.end_s for span in starts) - min(span.begin_s for span in starts)


def _values(found: Mapping[int, list[float]], num_microbatches: int) -> Values:
    if sorted(found) == list(range(num_microbatches)):
        return tuple(median(found[microbatch]) for microbatch in range(num_microbatches))
    return (median(each for samples in found.values() for each in samples),)


def _spans(report: RankReport, graph: StageGraph) -> dict[Op, Span]:
    edges = {edge.name for edge in graph.edges}
    found = {op: span for span in report.spans if (op := op_of(span.name)) is not None}
    for op in found:
        if (op.module and op.module not in graph.nodes) or (
            op.boundary and op.boundary not in edges
        ):
            raise PlanError(
                f"the run has '{op}', but the job's stages are {sorted(graph.nodes)}; "
                f"take a run of the same modules and pipelines"
            )
    return found


def _shows_its_cost(op: Op, ops: Collection[Op]) -> bool:
    """Whether a span lasts as long as the op costs.

    Receives wait for rows, and sends for earlier ones after the first of a step. A forward
    that was run ahead in the step before takes no time; what it takes is in ``run_ahead``.
    """
    if op.kind is OpKind.FORWARD:
        return Op(OpKind.RUN_AHEAD, op.module, op.microbatch) not in ops
    return not op.kind.is_recv and not (op.kind.is_send and op.microbatch >= MOST_SENDS)


def _together(op: Op, graph: StageGraph, step: Mapping[int, Spans]) -> Iterable[Iterable[int]]:
    """Return the sets of ranks that run an op as one collective."""
    if op.kind is OpKind.AGREE:
        return [step]
    if op.kind.is_compute:
        return graph.nodes[op.module].lanes
    if op.kind is OpKind.GRAD_SYNC:
        return [graph.nodes[op.module].places]
    return [[rank] for rank in step]


def _duration_s(op: Op, ranks: Sequence[Spans]) -> float:
    """Return the seconds of a collective without the waits for those who came late."""
    begun = [spans.get(Op(OpKind.START_GRAD_SYNC, op.module)) for spans in ranks]
    if op.kind is OpKind.GRAD_SYNC and all(begun):
        began_s = max(span.end_s for span in begun if span is not None)
        return max(0.0, min(spans[op].end_s for spans in ranks) - began_s)
    return min(spans[op].duration_s for spans in ranks)


def _last_launches_s(step: Mapping[int, Spans]) -> dict[tuple[OpKind, str, int], float]:
    """Return when the last sender of each exchange had launched it."""
    found: dict[tuple[OpKind, str, int], float] = {}
    for op, span in ((op, span) for spans in step.values() for op, span in spans.items()):
        if op.kind.is_send:
            key = op.kind, op.boundary, op.microbatch
            found[key] = max(found.get(key, span.end_s), span.end_s)
    return found
