"""What ops would cost by the sizes of the model: for jobs that nobody has run yet.

Formulas, for the busiest data-parallel lane of a microbatch:

- A forward has 2 FLOPs per token and active weight, and per layer 4 * width of all heads * (sum
  of squared sequence lengths) for the core of attention, half of that where it is causal;
  tp * cp ranks share them. The backward has twice as many: those of attention, and half of the
  others, for the gradients of the inputs. What is computed again is added to these.
- A layer keeps for its backward what Korthikanti et al. (2022, section 4) count, for matrices
  of any width, without dropout, with attention that keeps no scores: the inputs of two norms,
  of attention and of the feed-forward layer (4 * hidden, which tp splits only with sp);
  queries, keys, values and the output of attention; what the activation function takes and
  gives. With a GELU and ffn = 4 * hidden that makes their 16 values per token (34 bytes in
  bf16 with dropout's masks). Layers that are computed again keep their input alone. The LLM's
  last stage also keeps its logits, in fp32.
- A transfer carries the rows of its busiest sender or receiver; colocated modules are taken to
  move all rows.
- A sync is a ring all-reduce of fp32 gradients over dp * cp. Adam reads four fp32 numbers per
  weight and writes three.

Left out: padding, norms and other element-wise work, the router, and the collectives of tp and
cp inside layers. The FLOP/s that a rank achieves stand for these too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.config.models import GptConfig
from disagg_train.config.modules import GptModule, TransformerModule
from disagg_train.errors import ConfigError
from disagg_train.planner.step_plan import StepPlan
from disagg_train.schedule.costs import CostModel, TransferCost, Values
from disagg_train.schedule.graph import Edge, StageGraph
from disagg_train.schedule.ops import OpKind

Module = TransformerModule | GptModule

_VALUE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_FP32_BYTES, _ADAM_BYTES = 4, 28
_ADDED = {"none": (0, 0), "selective": (0, 1), "full": (1, 1)}
"""Forwards that a backward adds: of the matrices, and of the core of attention."""


@dataclass(frozen=True)
class Machine:
    """What one rank and its links achieve; not what their data sheets promise.

    Args:
        flops_per_s: of forwards and backwards.
        link_bytes_per_s: between two ranks, in each direction.
        latency_s: of a transfer.
        memory_bytes_per_s: of the rank's own memory, for the optimizer.
    """

    flops_per_s: float = 200e12
    link_bytes_per_s: float = 25e9
    latency_s: float = 20e-6
    memory_bytes_per_s: float = 2e12

    def __str__(self) -> str:
        return (
            f"{self.flops_per_s / 1e12:g} TFLOP/s achieved per rank, "
            f"{self.link_bytes_per_s / 1e9:g} GB/s and {self.latency_s * 1e6:g} us per transfer"
        )


@dataclass(frozen=True)
class _Lane:
    """What one data-parallel rank has of a microbatch: tokens, and the sum of their squares."""

    tokens: int
    squares: int


@dataclass(frozen=True)
class _Part:
    """A part of a stage; numbers are per token and of all tp ranks together.

    Args:
        active: weights that a token passes through.
        weights: all dense ones.
        expert_weights: all experts' ones.
        attention: FLOPs of a forward per squared token.
        kept: values for the backward, of which every tp rank has its own copy without sp.
        kept_cut: values for the backward that tp ranks share.
        trained: whether the weights change.
        passed_back: whether gradients pass through.
        added: forwards that the backward adds, of the matrices and of attention.
    """

    active: float = 0.0
    weights: float = 0.0
    expert_weights: float = 0.0
    attention: float = 0.0
    kept: float = 0.0
    kept_cut: float = 0.0
    trained: bool = True
    passed_back: bool = True
    added: tuple[int, int] = (0, 0)

    def forward_flops(self, lane: _Lane) -> float:
        return 2 * self.active * lane.tokens + self.attention * lane.squares

    def input_flops(self, lane: _Lane) -> float:
        matrices, attention = self.added
        of_matrices = 2 * self.active * lane.tokens * (1 + matrices)
        of_attention = self.attention * lane.squares * (2 + attention)
        return (of_matrices + of_attention) * self.passed_back

    def weight_flops(self, lane: _Lane) -> float:
        return 2 * self.active * lane.tokens * self.trained


def analytic_costs(
    job: JobConfig, graph: StageGraph, plan: StepPlan, machine: Machine
) -> CostModel:
    """Return the costs of a step.

    Args:
        job: sizes and layouts of the modules.
        graph: the job's stage graph.
        plan: says which tokens every microbatch has.
        machine: what it runs on.

    Raises:
        ConfigError: an encoder is of a class of one's own, whose sizes nobody knows.
    """
    seconds: dict[tuple[OpKind, str], Values] = {}
    activations: dict[str, Values] = {}
    for name in job.modules:
        module = _known(job, name)
        lanes = [_lanes(plan, name, mb) for mb in range(plan.num_microbatches)]
        stages = [stage for stage, node in graph.nodes.items() if node.module == name]
        for index, stage in enumerate(stages):
            parts = _parts(job, module, index, len(stages))
            per_kind = _pass_s(parts, lanes, module, machine) | _update_s(parts, module, machine)
            seconds |= {(kind, stage): values for kind, values in per_kind.items()}
            activations[stage] = _activation_bytes(parts, lanes, module, job)
    transfers = {
        (kind, edge.name): TransferCost(
            (machine.latency_s,), _edge_bytes(job, plan, graph, edge), machine.link_bytes_per_s
        )
        for edge in graph.edges
        for kind in (OpKind.SEND_FORWARD, OpKind.SEND_BACKWARD)
    }
    return CostModel(seconds, transfers, activations)


def _known(job: JobConfig, name: str) -> Module:
    """Return a module whose costs its sizes tell."""
    module = job.modules[name]
    if not isinstance(module, TransformerModule | GptModule):
        raise ConfigError(
            f"modules.{name}: what {module.kind} costs is not known from its sizes; measure it "
            f"with simulate --from RUN"
        )
    return module


def _lanes(plan: StepPlan, name: str, microbatch: int) -> list[_Lane]:
    """Return a microbatch's lanes of a module: an encoder has inputs, the LLM sequences."""
    found = []
    for held in plan.assignment[name][microbatch]:
        samples = [plan.samples[index] for index in held]
        if name == LANGUAGE:
            lengths = [sample.sequence_tokens for sample in samples]
        else:
            lengths = [each for sample in samples for each in sample.input_tokens.get(name, ())]
        found.append(_Lane(sum(lengths), sum(length * length for length in lengths)))
    return found


# What stages consist of.


def _parts(job: JobConfig, module: Module, index: int, num_stages: int) -> list[_Part]:
    """Return the parts of one stage: its layers, and what is before the first or after the last."""
    parts = [_layers(module, module.model.num_layers_run // num_stages)]
    if index == 0:
        parts.append(_embedding(module))
    if index == num_stages - 1:
        parts.append(
            _projector(module, job)
            if isinstance(module, TransformerModule)
            else _output(module, job, num_stages)
        )
    return parts


def _layers(module: Module, num_layers: int) -> _Part:
    width, (of_queries, of_keys) = module.model.hidden_size, _head_widths(module)
    attention_weights = 2 * width * (of_queries + of_keys)
    feed_forward = _feed_forward(module)
    again = module.recompute == "full"
    return _Part(
        active=num_layers * (attention_weights + feed_forward.active),
        weights=num_layers * (attention_weights + feed_forward.weights),
        expert_weights=num_layers * feed_forward.expert_weights,
        attention=num_layers * of_queries * (2 if isinstance(module, GptModule) else 4),
        kept=num_layers * width * (1 if again else 4),
        kept_cut=0 if again else num_layers * (2 * (of_queries + of_keys) + feed_forward.kept_cut),
        trained=not module.freezes_all,
        passed_back=_passes_back(module),
        added=_ADDED[module.recompute],
    )


def _passes_back(module: Module) -> bool:
    """Whether gradients pass through the layers: not where nothing below wants them."""
    return isinstance(module, GptModule) or not module.freezes_all


def _head_widths(module: Module) -> tuple[int, int]:
    """Return how wide the queries of all heads are, and their keys."""
    model = module.model
    if isinstance(model, GptConfig):
        return model.num_attention_heads * model.head_width, model.query_groups * model.head_width
    return model.hidden_size, model.hidden_size


def _feed_forward(module: Module) -> _Part:
    """Return one layer's feed-forward part: GELU, SwiGLU, or experts with SwiGLU."""
    model, width = module.model, module.model.hidden_size
    if not isinstance(model, GptConfig):
        matrices = 2 * width * model.ffn_size
        return _Part(matrices, matrices, kept_cut=2 * model.ffn_size)
    if model.num_experts is None:
        matrices = 3 * width * model.ffn_size
        return _Part(matrices, matrices, kept_cut=3 * model.ffn_size)
    expert, chosen = 3 * width * model.expert_ffn_size, model.experts_per_token
    kept = chosen * (width + 3 * model.expert_ffn_size)
    return _Part(chosen * expert, 0, model.num_experts * expert, kept_cut=kept)


def _embedding(module: Module) -> _Part:
    """Return what is before the first layer; looking tokens up costs nothing."""
    model, frozen = module.model, module.freezes_all
    if isinstance(model, GptConfig):
        return _Part(weights=model.vocab_size * model.hidden_size, trained=not frozen)
    matrix = model.values_per_token * model.hidden_size
    return _Part(matrix, matrix, trained=not frozen, passed_back=False)


def _projector(module: TransformerModule, job: JobConfig) -> _Part:
    width, merge = module.model.hidden_size, module.projector.merge
    inner, outer = width * merge, job.language.model.hidden_size
    mlp = module.projector.kind == "mlp"
    matrices = outer * (inner + outer) if mlp else inner * outer
    return _Part(
        active=matrices / merge,
        weights=matrices,
        kept=width,
        kept_cut=2 * outer / merge if mlp else 0,
        trained=not module.freezes_projector,
    )


def _output(module: GptModule, job: JobConfig, num_stages: int) -> _Part:
    """Return the output layer; a stage that has the embedding too may share its matrix."""
    model = module.model
    matrix = model.vocab_size * model.hidden_size
    return _Part(
        active=matrix,
        weights=0 if model.tie_embeddings and num_stages == 1 else matrix,
        kept_cut=model.vocab_size * _FP32_BYTES / _VALUE_BYTES[job.train.precision],
        trained=not module.freeze,
    )


# What they cost.


def _pass_s(
    parts: Sequence[_Part], lanes: Sequence[Sequence[_Lane]], module: Module, machine: Machine
) -> dict[OpKind, Values]:
    """Return the seconds of forwards and backwards, per microbatch."""
    speed = machine.flops_per_s * module.parallel.tp * module.parallel.cp

    def busiest_s(flops: Callable[[_Part, _Lane], float]) -> Values:
        per_lane = ([sum(flops(p, lane) for p in parts) for lane in each] for each in lanes)
        return tuple(max(each) / speed for each in per_lane)

    return {
        OpKind.FORWARD: busiest_s(_Part.forward_flops),
        OpKind.BACKWARD_INPUT: busiest_s(_Part.input_flops),
        OpKind.BACKWARD_WEIGHT: busiest_s(_Part.weight_flops),
        OpKind.BACKWARD: busiest_s(lambda p, lane: p.input_flops(lane) + p.weight_flops(lane)),
    }


def _update_s(parts: Sequence[_Part], module: Module, machine: Machine) -> dict[OpKind, Values]:
    """Return the seconds of the gradient sync and of the update."""
    parallel = module.parallel
    ranks = parallel.dp * parallel.cp
    dense = sum(part.weights for part in parts if part.trained) / parallel.tp
    experts = sum(part.expert_weights for part in parts if part.trained)
    experts /= parallel.tp * parallel.ep
    sync_bytes = _ring_bytes(dense, ranks) + _ring_bytes(experts, ranks // parallel.ep)
    update_bytes = _ADAM_BYTES * (dense + experts)
    return {
        OpKind.GRAD_SYNC: (sync_bytes / machine.link_bytes_per_s,),
        OpKind.OPTIMIZER_STEP: (update_bytes / machine.memory_bytes_per_s,),
    }


def _ring_bytes(weights: float, num_ranks: int) -> float:
    """Return what each rank of a ring all-reduce of fp32 gradients sends."""
    return 2 * (num_ranks - 1) / num_ranks * weights * _FP32_BYTES


def _activation_bytes(
    parts: Sequence[_Part], lanes: Sequence[Sequence[_Lane]], module: Module, job: JobConfig
) -> Values:
    """Return what one rank keeps of each microbatch for its backward."""
    parallel, kept = module.parallel, [part for part in parts if part.passed_back]
    copies = parallel.tp if parallel.sequence_parallel else 1
    values = sum(part.kept / copies + part.kept_cut / parallel.tp for part in kept)
    per_token = values * _VALUE_BYTES[job.train.precision] / parallel.cp
    return tuple(max(lane.tokens for lane in each) * per_token for each in lanes)


def _edge_bytes(job: JobConfig, plan: StepPlan, graph: StageGraph, edge: Edge) -> Values:
    """Return the bytes that the busiest rank of an edge moves, per microbatch."""
    source, destination = (graph.nodes[end].module for end in (edge.source, edge.destination))
    width = _known(job, destination).model.hidden_size
    if source == destination:
        rows = _link_rows(job, plan, source)
    else:
        sides = [_boundary_rows(job, plan, source, side) for side in (source, destination)]
        rows = [max(pair) for pair in zip(*sides, strict=True)]
    return tuple(each * width * _VALUE_BYTES[job.train.precision] for each in rows)


def _link_rows(job: JobConfig, plan: StepPlan, module: str) -> list[float]:
    """Return the rows that a rank hands to its peer in the next stage."""
    parallel = job.modules[module].parallel
    ranks = parallel.cp * (parallel.tp if parallel.sequence_parallel else 1)
    return [
        max(lane.tokens for lane in _lanes(plan, module, mb)) / ranks
        for mb in range(plan.num_microbatches)
    ]


def _boundary_rows(job: JobConfig, plan: StepPlan, encoder: str, side: str) -> list[float]:
    """Return an encoder's rows per rank of one side; tp ranks with equal rows share them."""
    parallel = job.modules[side].parallel
    return [
        max(sum(plan.samples[index].tokens(encoder) for index in held) for held in lanes)
        / (parallel.tp * parallel.cp)
        for lanes in plan.assignment[side]
    ]
