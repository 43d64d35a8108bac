"""What the stages of a module consist of, by the sizes of the model: weights, FLOPs, kept values.

What is moved beside the products of matrices is ``traffic``'s.

- A forward has 2 FLOPs per token and active weight, and per layer 4 * width of all heads * (sum
  of squared sequence lengths) for the core of attention, half of that where it is causal. The
  backward has twice as many: those of attention, and half of the others, for the gradients of
  the inputs. What is computed again is added to these.
- A layer keeps for its backward what Korthikanti et al. (2022, section 4) count, for matrices
  of any width, without dropout, with attention that keeps no scores: the inputs of two norms,
  of attention and of the feed-forward layer (4 * hidden, which tp splits only with sp);
  queries, keys, values and the output of attention; what the activation function takes and
  gives. With a GELU and ffn = 4 * hidden that makes their 16 values per token (34 bytes in
  bf16 with dropout's masks). Layers that are computed again keep their input alone. The LLM's
  last stage also keeps its logits, in fp32.
- With ``lora`` the additions alone are trained. Weights that ``freeze`` names by patterns are
  taken to be trained: which these are, only the built model knows.
- Left out: weights of norms, biases, positions and the router, and rows that are received.
"""

from collections.abc import Callable
from dataclasses import dataclass

from disagg_train.config.job import JobConfig
from disagg_train.config.models import GptConfig
from disagg_train.config.modules import GptModule, LoraConfig, ParallelConfig, TransformerModule
from disagg_train.errors import ConfigError
from disagg_train.planner.collectives import FP32_BYTES
from disagg_train.planner.traffic import (
    Traffic,
    embedding_traffic,
    layers_traffic,
    output_traffic,
    projector_traffic,
)

Module = TransformerModule | GptModule

VALUE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_ADDED = {"none": (0, 0), "selective": (0, 1), "full": (1, 1)}
"""Forwards that a backward adds: of the matrices, and of the core of attention."""


@dataclass(frozen=True)
class Flops:
    """FLOPs of a pass, of all tp and cp ranks together.

    Args:
        per_token: of the matrices.
        per_square: of the core of attention, per squared token of a sequence.
    """

    per_token: float
    per_square: float = 0.0

    def __add__(self, other: "Flops") -> "Flops":
        """Return both passes together."""
        return Flops(self.per_token + other.per_token, self.per_square + other.per_square)


@dataclass(frozen=True)
class Part:
    """A part of a stage; numbers are per token and of all tp ranks together.

    Args:
        active: weights that a token passes through.
        weights: all dense ones.
        expert_weights: all experts' ones.
        read: dense weights that a pass reads.
        attention: FLOPs of a forward per squared token.
        kept: values for the backward, of which every tp rank has its own copy without sp.
        kept_cut: values for the backward that tp ranks share.
        trained: whether the weights change.
        passed_back: whether gradients pass through.
        added: forwards that the backward adds, of the matrices and of attention.
        tp_cuts: whether tp ranks share the weights; each has them all where not.
        traffic: beside the products of matrices.
    """

    active: float = 0.0
    weights: float = 0.0
    expert_weights: float = 0.0
    read: float = 0.0
    attention: float = 0.0
    kept: float = 0.0
    kept_cut: float = 0.0
    trained: bool = True
    passed_back: bool = True
    added: tuple[int, int] = (0, 0)
    tp_cuts: bool = True
    traffic: Traffic = Traffic()

    @property
    def forward(self) -> Flops:
        """Of a forward."""
        return Flops(2 * self.active, self.attention)

    @property
    def backward_input(self) -> Flops:
        """Of the gradients of the inputs, and of what is computed again for them."""
        if not self.passed_back:
            return Flops(0.0)
        matrices, attention = self.added
        return Flops(2 * self.active * (1 + matrices), self.attention * (2 + attention))

    @property
    def backward_weight(self) -> Flops:
        """Of the gradients of the matrices."""
        return Flops(2 * self.active if self.trained else 0.0)

    def dense_of_rank(self, parallel: ParallelConfig) -> float:
        """Return the dense weights that a rank holds."""
        return self.weights / (parallel.tp if self.tp_cuts else 1)

    def experts_of_rank(self, parallel: ParallelConfig) -> float:
        """Return the experts' weights that a rank holds."""
        return self.expert_weights / (parallel.tp * parallel.ep)

    def kept_by_rank(self, parallel: ParallelConfig) -> float:
        """Return the values that a rank keeps of each token of its lane."""
        copies = parallel.tp if parallel.sequence_parallel else 1
        return (self.kept / copies + self.kept_cut / parallel.tp) / parallel.cp

    def read_by_rank(self, parallel: ParallelConfig) -> float:
        """Return the weights that a pass reads on a rank."""
        dense = self.read / (parallel.tp if self.tp_cuts else 1)
        return dense + self.experts_of_rank(parallel)


def known_module(job: JobConfig, name: str) -> Module:
    """Return a module whose costs its sizes tell."""
    module = job.modules[name]
    if not isinstance(module, TransformerModule | GptModule):
        raise ConfigError(
            f"modules.{name}: what {module.kind} costs is not known from its sizes; measure it "
            f"with simulate --from RUN"
        )
    return module


def of_stages[Value](
    job: JobConfig, module: Module, value_of: Callable[[list[Part]], Value]
) -> tuple[Value, ...]:
    """Return a value for every stage of a module, in order.

    Args:
        job: the job.
        module: the module.
        value_of: works it out from a stage's parts. Stages between the first and the last are
            alike, so it is asked three times at most.
    """
    last = module.parallel.pp * module.parallel.vpp - 1
    values = {
        index: value_of(_stage_parts(job, module, index, last + 1))
        for index in {0, min(1, last), last}
    }
    return tuple(values[index if index in (0, last) else 1] for index in range(last + 1))


def _stage_parts(job: JobConfig, module: Module, index: int, num_stages: int) -> list[Part]:
    """Return the parts of one stage: its layers, and what is before the first or after the last."""
    num_layers = module.model.num_layers_run // num_stages
    parts = [_layers(module, num_layers)]
    if module.lora is not None:
        parts.append(_additions(module, module.lora, num_layers))
    if index == 0:
        parts.append(_embedding(module))
    if index == num_stages - 1:
        parts.append(
            _projector(module, job)
            if isinstance(module, TransformerModule)
            else _output(module, job, num_stages)
        )
    return parts


def layer_part(module: Module) -> Part:
    """Return one layer, whose values are all kept."""
    return _layers(module.model_copy(update={"recompute": "none"}), 1)


def _layers(module: Module, num_layers: int) -> Part:
    width, (of_queries, of_keys) = module.model.hidden_size, _head_widths(module)
    attention_weights = 2 * width * (of_queries + of_keys)
    feed_forward = _feed_forward(module)
    again = module.recompute == "full"
    dense = num_layers * (attention_weights + feed_forward.weights)
    return Part(
        active=num_layers * (attention_weights + feed_forward.active),
        weights=dense,
        expert_weights=num_layers * feed_forward.expert_weights,
        read=dense,
        attention=num_layers * of_queries * (2 if isinstance(module, GptModule) else 4),
        kept=num_layers * width * (1 if again else 4),
        kept_cut=0 if again else num_layers * (2 * (of_queries + of_keys) + feed_forward.kept_cut),
        trained=_trains_matrices(module),
        passed_back=_passes_back(module),
        added=_ADDED[module.recompute],
        traffic=layers_traffic(module.model, of_queries, of_keys, num_layers),
    )


def _additions(module: Module, lora: LoraConfig, num_layers: int) -> Part:
    """Return the low-rank additions to the matrices of layers; experts get none."""
    width, (of_queries, of_keys) = module.model.hidden_size, _head_widths(module)
    ends = {
        "linear_qkv": width + of_queries + 2 * of_keys,
        "linear_proj": of_queries + width,
    }
    if not (isinstance(module, GptModule) and module.model.num_experts is not None):
        ffn, gated = module.model.ffn_size, isinstance(module, GptModule)
        ends |= {"linear_fc1": width + ffn * (2 if gated else 1), "linear_fc2": ffn + width}
    weights = num_layers * lora.rank * sum(ends.get(target, 0) for target in lora.targets)
    return Part(active=weights, weights=weights, read=weights)


def _trains_matrices(module: Module) -> bool:
    return not module.freezes_all and module.lora is None


def _passes_back(module: Module) -> bool:
    """Whether gradients pass through the layers: not where nothing below wants them."""
    return isinstance(module, GptModule) or not module.freezes_all


def _head_widths(module: Module) -> tuple[int, int]:
    """Return how wide the queries of all heads are, and their keys."""
    model = module.model
    if isinstance(model, GptConfig):
        return model.num_attention_heads * model.head_width, model.query_groups * model.head_width
    return model.hidden_size, model.hidden_size


def _feed_forward(module: Module) -> Part:
    """Return one layer's feed-forward part: GELU, SwiGLU, or experts with SwiGLU."""
    model, width = module.model, module.model.hidden_size
    if not isinstance(model, GptConfig):
        matrices = 2 * width * model.ffn_size
        return Part(matrices, matrices, kept_cut=2 * model.ffn_size)
    if model.num_experts is None:
        matrices = 3 * width * model.ffn_size
        return Part(matrices, matrices, kept_cut=3 * model.ffn_size)
    expert, chosen = 3 * width * model.expert_ffn_size, model.experts_per_token
    kept = chosen * (width + 3 * model.expert_ffn_size)
    return Part(chosen * expert, 0, model.num_experts * expert, kept_cut=kept)


def _embedding(module: Module) -> Part:
    """Return what is before the first layer; looking tokens up costs nothing."""
    model, trained = module.model, _trains_matrices(module)
    traffic = embedding_traffic(model)
    if isinstance(model, GptConfig):
        table = model.vocab_size * model.hidden_size
        return Part(weights=table, trained=trained, traffic=traffic)
    matrix = model.values_per_token * model.hidden_size
    return Part(
        active=matrix,
        weights=matrix,
        read=matrix,
        trained=trained,
        passed_back=False,
        tp_cuts=False,
        traffic=traffic,
    )


def _projector(module: TransformerModule, job: JobConfig) -> Part:
    width, merge = module.model.hidden_size, module.projector.merge
    inner, outer = width * merge, job.language.model.hidden_size
    mlp = module.projector.kind == "mlp"
    matrices = outer * (inner + outer) if mlp else inner * outer
    return Part(
        active=matrices / merge,
        weights=matrices,
        read=matrices,
        kept=width,
        kept_cut=2 * outer / merge if mlp else 0,
        trained=not module.freezes_projector,
        tp_cuts=mlp,
        traffic=projector_traffic(width, outer, merge, mlp),
    )


def _output(module: GptModule, job: JobConfig, num_stages: int) -> Part:
    """Return the output layer; a stage that has the embedding too may share its matrix."""
    model = module.model
    matrix = model.vocab_size * model.hidden_size
    fp32_values = FP32_BYTES / VALUE_BYTES[job.train.precision]
    return Part(
        active=matrix,
        read=matrix,
        weights=0 if model.tie_embeddings and num_stages == 1 else matrix,
        kept_cut=model.vocab_size * fp32_values,
        trained=_trains_matrices(module),
        traffic=output_traffic(model, fp32_values),
    )
