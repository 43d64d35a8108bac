"""Measurements that were never made: a module costs what the analytic model says of a machine."""

from disagg_train.config.job import JobConfig
from disagg_train.planner.analytic_costs import costs_by_size
from disagg_train.planner.fit import Errors, PassFit, TransferFit
from disagg_train.planner.machine import Machine
from disagg_train.planner.measurements import (
    LinkMeasurement,
    ModuleMeasurement,
    StageFit,
    signature,
)
from disagg_train.planner.sample_costs import PassCost
from disagg_train.schedule.ops import OpKind

MACHINE = Machine(flops_per_s=1e11, link_bytes_per_s=1e8, latency_s=1e-4, memory_bytes_per_s=1e9)
EXACT = Errors(median=0.0, worst=0.0)
WHOLE = (OpKind.FORWARD, OpKind.BACKWARD)
HALVES = (OpKind.FORWARD, OpKind.BACKWARD_INPUT, OpKind.BACKWARD_WEIGHT)
TOKENS, SQUARES = 100.0, 2500.0


def pass_fit(cost: PassCost) -> PassFit:
    return PassFit(
        per_token_s=cost.per_token_s,
        per_square_s=cost.per_square_s,
        per_microbatch_s=cost.per_microbatch_s,
        num_rows=10,
        error=EXACT,
        held_out=EXACT,
    )


def module_of(
    job: JobConfig,
    name: str,
    machine: Machine = MACHINE,
    kinds: tuple[OpKind, ...] = WHOLE,
    hardware: str = "a CPU",
    activation_ratio: float | None = None,
) -> ModuleMeasurement:
    module = job.modules[name]
    stages = tuple(
        StageFit(
            passes={kind: pass_fit(stage.passes[kind]) for kind in kinds},
            once_s=dict(stage.once_s),
        )
        for stage in costs_by_size(job, machine).modules[name].stages
    )
    return ModuleMeasurement(
        module=name,
        signature=signature(job, name),
        parallel=module.parallel,
        recompute=module.recompute,
        hardware=hardware,
        versions={},
        stages=stages,
        tokens=TOKENS,
        squares=SQUARES,
        activation_ratio=activation_ratio,
    )


def link(
    bytes_per_s: float, latency_s: float, crosses_nodes: bool, ranks_per_node: int = 4
) -> LinkMeasurement:
    fit = TransferFit(
        latency_s=latency_s,
        per_byte_s=1.0 / bytes_per_s,
        num_rows=10,
        error=EXACT,
        held_out=None,
    )
    return LinkMeasurement(
        ends=("a CPU",),
        crosses_nodes=crosses_nodes,
        ranks_per_node=ranks_per_node,
        edges=("vision->language",),
        fit=fit,
    )
