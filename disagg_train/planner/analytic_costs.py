"""What ops would cost by the sizes of the model: for jobs that nobody has run yet.

``stage_parts`` has the FLOPs and the kept values, ``collectives`` what layers do beside their
matrices, ``step_costs`` what a microbatch makes of them. tp * cp ranks share a lane's FLOPs.

Gradients are summed as Megatron's distributed optimizer does: a sync leaves each of the dp * cp
ranks the sum of its own part in fp32, half a ring. The update changes that part alone (Adam reads
four fp32 numbers per weight and writes three), and its other half of the ring gives all ranks the
new weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from disagg_train.config.job import JobConfig
from disagg_train.config.modules import CustomModule
from disagg_train.planner.collectives import FP32_BYTES, NOTHING, LayerCosts
from disagg_train.planner.links import edge_bytes_per_s
from disagg_train.planner.machine import Hardware, Machine
from disagg_train.planner.sample_costs import ModuleCost, PassCost, SampleTable, StageCost
from disagg_train.planner.seats import Seats
from disagg_train.planner.stage_parts import (
    VALUE_BYTES,
    Flops,
    Module,
    Part,
    known_module,
    of_stages,
)
from disagg_train.planner.step_costs import JobCosts, step_costs
from disagg_train.planner.step_plan import StepPlan
from disagg_train.schedule.costs import CostModel
from disagg_train.schedule.graph import StageGraph
from disagg_train.schedule.ops import OpKind

_ADAM_BYTES = 28


def analytic_costs(
    job: JobConfig, graph: StageGraph, plan: StepPlan, hardware: Hardware | Machine
) -> CostModel:
    """Return the costs of a step.

    Args:
        job: sizes and layouts of the modules.
        graph: the job's stage graph.
        plan: says which tokens every microbatch has.
        hardware: what it runs on.

    Raises:
        ConfigError: an encoder is of a class of one's own, whose sizes nobody knows.
    """
    on = Hardware.on(hardware)
    modules = {
        name: _module_cost(job, known_module(job, name), on.of(module.group))
        for name, module in job.modules.items()
    }
    table = SampleTable.of(plan.samples, list(job.encoders))
    seats = {name: Seats.of(assignment) for name, assignment in plan.assignment.items()}
    return step_costs(job, graph, _job_costs(job, modules, on), table, seats)


def costs_by_size(job: JobConfig, hardware: Hardware | Machine) -> JobCosts:
    """Return what a job's modules cost, for comparing assignments.

    Encoders of a class of one's own are taken to cost the LLM's seconds per token: only what
    they compute on is known.
    """
    on = Hardware.on(hardware)
    modules = {}
    for name, module in job.modules.items():
        machine = on.of(module.group)
        if isinstance(module, CustomModule):
            language = _module_cost(job, job.language, machine)
            modules[name] = _stand_in(language, module.parallel.pp)
        else:
            modules[name] = _module_cost(job, known_module(job, name), machine)
    return _job_costs(job, modules, on)


def _job_costs(job: JobConfig, modules: dict[str, ModuleCost], hardware: Hardware) -> JobCosts:
    machine = hardware.default
    edges = edge_bytes_per_s(job, hardware)
    return JobCosts(modules, machine.latency_s, machine.link_bytes_per_s, edges)


def _stand_in(language: ModuleCost, num_stages: int) -> ModuleCost:
    """Return the LLM's seconds per token, spread over the stages of another module."""
    kinds = language.stages[0].passes
    passes = {
        kind: PassCost(sum(s.passes[kind].per_token_s for s in language.stages) / num_stages)
        for kind in kinds
    }
    return ModuleCost((StageCost(passes, language.bytes_per_token),) * num_stages)


def _module_cost(job: JobConfig, module: Module, machine: Machine) -> ModuleCost:
    return ModuleCost(
        of_stages(job, module, lambda parts: _stage_cost(job, module, parts, machine))
    )


def _stage_cost(
    job: JobConfig, module: Module, parts: Sequence[Part], machine: Machine
) -> StageCost:
    value_bytes = VALUE_BYTES[job.train.precision]
    costs = _PartCosts(module, machine, value_bytes)
    forward, backward_input, backward_weight = NOTHING, NOTHING, NOTHING
    for part in parts:
        forward += costs.forward(part)
        backward_input += costs.backward_input(part)
        backward_weight += costs.backward_weight(part)
    passes = {
        OpKind.FORWARD: forward,
        OpKind.BACKWARD_INPUT: backward_input,
        OpKind.BACKWARD_WEIGHT: backward_weight,
        OpKind.BACKWARD: backward_input + backward_weight,
    }
    once_s = _once_s(parts, module, machine, value_bytes)
    kept = sum(part.kept_by_rank(module.parallel) for part in parts if part.passed_back)
    return StageCost(passes, value_bytes * kept, once_s)


class _PartCosts:
    """What the parts of a module's stages cost its ranks."""

    def __init__(self, module: Module, machine: Machine, value_bytes: int) -> None:
        self._parallel = module.parallel
        self._layers = LayerCosts(module.parallel, machine, value_bytes)
        self._flops_per_s = machine.flops_per_s * module.parallel.tp * module.parallel.cp

    def forward(self, part: Part) -> PassCost:
        beside = self._layers.forward(part.traffic, part.read_by_rank(self._parallel))
        return self._of(part.forward) + beside

    def backward_input(self, part: Part) -> PassCost:
        """Return what the gradients of the inputs cost, and what is computed again for them."""
        if not part.passed_back:
            return NOTHING
        read = part.read_by_rank(self._parallel)
        cost = self._of(part.backward_input) + self._layers.backward_input(part.traffic, read)
        matrices, attention = part.added
        if matrices:
            return cost + self._layers.forward(part.traffic, read)
        return cost + self._layers.ring(part.traffic) if attention else cost

    def backward_weight(self, part: Part) -> PassCost:
        if not part.trained:
            return NOTHING
        held = part.dense_of_rank(self._parallel) + part.experts_of_rank(self._parallel)
        beside = self._layers.backward_weight(part.traffic, held)
        return self._of(part.backward_weight) + beside

    def _of(self, flops: Flops) -> PassCost:
        return PassCost(flops.per_token / self._flops_per_s, flops.per_square / self._flops_per_s)


def _once_s(
    parts: Sequence[Part], module: Module, machine: Machine, value_bytes: int
) -> dict[OpKind, float]:
    """Return the seconds of the gradient sync and of the update."""
    parallel = module.parallel
    ranks = parallel.dp * parallel.cp
    trained = [part for part in parts if part.trained]
    dense = sum(part.dense_of_rank(parallel) for part in trained)
    experts = sum(part.experts_of_rank(parallel) for part in trained)
    shards = (
        _Shards(dense, ranks, machine.ring_bytes_per_s(parallel.tp, ranks)),
        _Shards(
            experts,
            ranks // parallel.ep,
            machine.ring_bytes_per_s(parallel.tp * parallel.ep, ranks // parallel.ep),
        ),
    )
    memory_s = sum(_ADAM_BYTES * each.weights / each.ranks for each in shards)
    return {
        OpKind.GRAD_SYNC: sum(each.half_ring_s(FP32_BYTES) for each in shards),
        OpKind.OPTIMIZER_STEP: memory_s / machine.memory_bytes_per_s
        + sum(each.half_ring_s(value_bytes) for each in shards),
    }


@dataclass(frozen=True)
class _Shards:
    """Weights of a rank, of which each of some ranks updates a part."""

    weights: float
    ranks: int
    bytes_per_s: float

    def half_ring_s(self, value_bytes: int) -> float:
        """Return what it takes to sum each part on its rank, or to give it to all of them."""
        sent = (self.ranks - 1) / self.ranks * self.weights
        return sent * value_bytes / self.bytes_per_s
