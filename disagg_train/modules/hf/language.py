"""LLMs: Llama, Qwen2.5, Qwen3, Mixtral and Qwen3-MoE in the names and layouts of transformers.

Megatron joins what a query group needs (its queries, its keys, its values) and keeps groups one
after the other; it joins gate and up of a feed-forward layer as [gate; up]. Names are those of
the model without its head (`LlamaModel`), where a whole LLM puts `model.` before all but
`lm_head`.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from disagg_train.config.models import GptConfig
from disagg_train.modules.hf.rules import Naming, Rule, same

_LAYER = re.compile(r"(?:^|\.)decoder\.layers\.(\d+)\.(.+)$")
_EXPERT = re.compile(r"mlp\.experts\.local_experts\.(\d+)\.(linear_fc[12])\.weight$")

_OUTSIDE: Mapping[str, str] = {
    "embedding.word_embeddings.weight": "embed_tokens.weight",
    "decoder.final_layernorm.weight": "norm.weight",
    "output_layer.weight": "lm_head.weight",
}
_AS_IT_IS: Mapping[str, str] = {
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "self_attention.q_layernorm.weight": "self_attn.q_norm.weight",
    "self_attention.k_layernorm.weight": "self_attn.k_norm.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
    "input_layernorm.weight": "input_layernorm.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    # Transformer Engine keeps a norm with the matrix after it.
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
}
_MIXTRAL = ("block_sparse_moe", {"gate": "w1", "up": "w3", "down": "w2"})
_QWEN = ("mlp", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"})
"""What a layer's experts are called, and an expert's matrices."""


def language_naming(model: GptConfig, model_type: str) -> Naming:
    """Return the rules of an LLM's parameters.

    Args:
        model: its sizes.
        model_type: of its config in transformers; families name their experts differently.
    """
    experts = _MIXTRAL if model_type == "mixtral" else _QWEN

    def naming(path: str) -> Rule | None:
        for ours, theirs in _OUTSIDE.items():
            if f".{path}".endswith(f".{ours}"):
                return same(theirs)
        if (found := _LAYER.search(path)) is None:
            return None
        rule = _of_layer(found[2], model, *experts)
        return None if rule is None else _under(f"layers.{found[1]}.", rule)

    return naming


def _of_layer(
    path: str, model: GptConfig, experts: str, matrices: Mapping[str, str]
) -> Rule | None:
    """Return the rule of a layer's parameter, by its path in the layer."""
    rule = None
    if path in _AS_IT_IS:
        rule = same(_AS_IT_IS[path])
    elif path in ("self_attention.linear_qkv.weight", "self_attention.linear_qkv.bias"):
        kind = path.rpartition(".")[2]
        names = tuple(f"self_attn.{part}_proj.{kind}" for part in "qkv")
        rule = Rule(names, _join_groups(model), _split_groups(model))
    elif path == "mlp.linear_fc1.weight":
        rule = _gate_and_up("mlp.gate_proj.weight", "mlp.up_proj.weight")
    elif path == "mlp.router.weight":
        rule = same(f"{experts}.gate.weight")
    elif found := _EXPERT.search(path):
        gate, up, down = (
            f"{experts}.experts.{found[1]}.{matrices[part]}.weight"
            for part in ("gate", "up", "down")
        )
        rule = same(down) if found[2] == "linear_fc2" else _gate_and_up(gate, up)
    return rule


def _gate_and_up(gate: str, up: str) -> Rule:
    return Rule((gate, up), torch.cat, lambda full: full.chunk(2))


def _join_groups(model: GptConfig) -> Callable[[Sequence[Tensor]], Tensor]:
    """Return what turns queries, keys and values ``[rows, ...]`` into rows by query group."""

    def join(tensors: Sequence[Tensor]) -> Tensor:
        groups, width = model.query_groups, model.head_width
        queries = model.num_attention_heads // groups * width
        parts = [
            tensor.view(groups, rows, *tensor.shape[1:])
            for tensor, rows in zip(tensors, (queries, width, width), strict=True)
        ]
        return torch.cat(parts, dim=1).flatten(0, 1)

    return join


def _split_groups(model: GptConfig) -> Callable[[Tensor], Sequence[Tensor]]:
    """Return the inverse of ``_join_groups``."""

    def split(full: Tensor) -> Sequence[Tensor]:
        groups, width = model.query_groups, model.head_width
        queries = model.num_attention_heads // groups * width
        by_group = full.view(groups, queries + 2 * width, *full.shape[1:])
        return [part.flatten(0, 1) for part in by_group.split([queries, width, width], dim=1)]

    return split


def _under(prefix: str, rule: Rule) -> Rule:
    return Rule(tuple(prefix + name for name in rule.names), rule.join, rule.split)
