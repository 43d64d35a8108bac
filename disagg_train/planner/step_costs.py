"""What the ops of one step cost, from what samples cost and who computes which of them.

A pass takes as long as the busiest data-parallel lane of the microbatch. A transfer carries the
rows of its busiest sender or receiver; colocated modules are taken to move all rows. Samples that
are padded to one length cost what that length costs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from disagg_train.config.job import JobConfig
from disagg_train.config.modules import GptModule, TransformerModule
from disagg_train.planner.sample_costs import Floats, ModuleCost, SampleTable
from disagg_train.planner.seats import Seats
from disagg_train.planner.stage_parts import VALUE_BYTES
from disagg_train.schedule.costs import CostModel, TransferCost, Values
from disagg_train.schedule.graph import Edge, StageGraph
from disagg_train.schedule.ops import OpKind

_SENDS = (OpKind.SEND_FORWARD, OpKind.SEND_BACKWARD)


@dataclass(frozen=True)
class JobCosts:
    """What a job's modules and links cost.

    Args:
        modules: by name.
        latency_s: of a transfer.
        link_bytes_per_s: between two ranks, in each direction.
        edge_bytes_per_s: the same of edges that are named, as in the stage graph.
    """

    modules: Mapping[str, ModuleCost]
    latency_s: float
    link_bytes_per_s: float
    edge_bytes_per_s: Mapping[str, float] = field(default_factory=dict)


def step_costs(
    job: JobConfig,
    graph: StageGraph,
    costs: JobCosts,
    table: SampleTable,
    seats: Mapping[str, Seats],
) -> CostModel:
    """Return the costs of a step.

    Args:
        job: layouts of the modules.
        graph: the job's stage graph.
        costs: of modules and links.
        table: the step's samples.
        seats: of every module.
    """
    seconds: dict[tuple[OpKind, str], Values] = {}
    activations: dict[str, Values] = {}
    tokens: dict[str, Floats] = {}
    for name, module in costs.modules.items():
        tokens_ML, squares_ML = lane_sums(job, table, name, seats[name])
        tokens[name] = tokens_ML
        stages = [stage for stage, node in graph.nodes.items() if node.module == name]
        for stage, cost in zip(stages, module.stages, strict=True):
            for kind, each in cost.passes.items():
                seconds[kind, stage] = _busiest(each.of_lanes(tokens_ML, squares_ML))
            seconds |= {(kind, stage): (value,) for kind, value in cost.once_s.items()}
            activations[stage] = _busiest(cost.bytes_per_token * tokens_ML)
    transfers: dict[tuple[OpKind, str], TransferCost] = {}
    for edge in graph.edges:
        num_bytes = _edge_bytes(job, graph, table, seats, tokens, edge)
        bytes_per_s = costs.edge_bytes_per_s.get(edge.name, costs.link_bytes_per_s)
        transfer = TransferCost((costs.latency_s,), num_bytes, bytes_per_s)
        transfers |= {(kind, edge.name): transfer for kind in _SENDS}
    return CostModel(seconds, transfers, activations)


def lane_sums(job: JobConfig, table: SampleTable, name: str, seats: Seats) -> tuple[Floats, Floats]:
    """Return a module's tokens and squares, ``[microbatch, lane]``."""
    module = job.modules[name]
    if isinstance(module, GptModule) and not module.packed:
        lengths_S = table.tokens[name]
        return seats.padded_sums(lengths_S), seats.padded_sums(lengths_S, 2)
    return seats.sums(table.tokens[name]), seats.sums(table.squares[name])


def _busiest(lanes_ML: Floats) -> Values:
    return tuple(lanes_ML.max(axis=1).tolist())


def _edge_bytes(
    job: JobConfig,
    graph: StageGraph,
    table: SampleTable,
    seats: Mapping[str, Seats],
    tokens: Mapping[str, Floats],
    edge: Edge,
) -> Values:
    """Return the bytes that the busiest rank of an edge moves, per microbatch."""
    source, destination = (graph.nodes[end].module for end in (edge.source, edge.destination))
    if source == destination:
        parallel = job.modules[source].parallel
        ranks = parallel.cp * (parallel.tp if parallel.sequence_parallel else 1)
        rows_M = tokens[source].max(axis=1) / ranks
    else:
        sides = [
            seats[side].sums(table.rows[source]).max(axis=1) / _ranks_of_lane(job, side)
            for side in (source, destination)
        ]
        rows_M = np.maximum(*sides)
    module = job.modules[destination]
    if not isinstance(module, TransformerModule | GptModule):
        module = job.language
    width = module.model.hidden_size
    return tuple((rows_M * width * VALUE_BYTES[job.train.precision]).tolist())


def _ranks_of_lane(job: JobConfig, module: str) -> int:
    """Return the ranks that share a lane's rows; tp ranks with equal rows share them too."""
    parallel = job.modules[module].parallel
    return parallel.tp * parallel.cp
