"""Cost models for tests."""

from dataclasses import replace

from disagg_train.schedule.costs import CostModel, TransferCost
from disagg_train.schedule.graph import StageGraph
from disagg_train.schedule.ops import OpKind


def uniform_costs(
    graph: StageGraph,
    forward_s: float = 1.0,
    backward_s: float = 2.0,
    transfer_s: float = 0.0,
    activation_bytes: float = 1.0,
) -> CostModel:
    """Return the model in which all stages and edges are alike, and an update costs nothing."""
    passes = ((OpKind.FORWARD, forward_s), (OpKind.BACKWARD, backward_s))
    sends = (OpKind.SEND_FORWARD, OpKind.SEND_BACKWARD)
    return CostModel(
        seconds={(kind, stage): (each_s,) for stage in graph.nodes for kind, each_s in passes},
        transfers={
            (kind, edge.name): TransferCost((transfer_s,)) for edge in graph.edges for kind in sends
        },
        activation_bytes=dict.fromkeys(graph.nodes, (activation_bytes,)),
    )


def scaled(costs: CostModel, factor: float) -> CostModel:
    """Return the model in which everything takes ``factor`` times as long."""
    return replace(
        costs,
        seconds={k: tuple(factor * v for v in values) for k, values in costs.seconds.items()},
        transfers={key: _slower(cost, factor) for key, cost in costs.transfers.items()},
        start_s=factor * costs.start_s,
    )


def _slower(cost: TransferCost, factor: float) -> TransferCost:
    latency_s = tuple(factor * value for value in cost.latency_s)
    return TransferCost(latency_s, cost.num_bytes, cost.bytes_per_s / factor)
