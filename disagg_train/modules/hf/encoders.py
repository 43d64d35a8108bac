"""Encoders: CLIP, SigLIP, SigLIP 2 and Whisper in the names and layouts of transformers.

Names are those of the tower alone (`SiglipVisionModel`, `WhisperEncoder`). Megatron keeps the
query, key and value of each head together; a convolution over patches is a linear over the
pixels of a patch, of which each row holds pixels of channels.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from disagg_train.config.models import EncoderConfig
from disagg_train.config.modules import (
    ClipModule,
    Siglip2Module,
    SiglipModule,
    TransformerModule,
    WhisperModule,
)
from disagg_train.modules.hf.rules import Naming, Rule, same

_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)$")

_PARTS: Mapping[str, str] = {
    "self_attention.linear_proj": "self_attn.out_proj",
    "input_layernorm": "layer_norm1",
    "pre_mlp_layernorm": "layer_norm2",
    "mlp.linear_fc1": "mlp.fc1",
    "mlp.linear_fc2": "mlp.fc2",
}
_OF_TOWER = {name: f"encoder.layers.{{}}.{theirs}" for name, theirs in _PARTS.items()}
_OF_WHISPER = {
    "self_attention.linear_proj": "layers.{}.self_attn.out_proj",
    "input_layernorm": "layers.{}.self_attn_layer_norm",
    "pre_mlp_layernorm": "layers.{}.final_layer_norm",
    "mlp.linear_fc1": "layers.{}.fc1",
    "mlp.linear_fc2": "layers.{}.fc2",
}
_FUSED_NORMS = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}
"""Transformer Engine keeps a norm with the matrix after it."""


def encoder_naming(module: TransformerModule) -> Naming:
    """Return the rules of an encoder's parameters; its projector has none here.

    A plain vision transformer (`kind: vit`) has no like in transformers, so it has no rules.
    """
    outside = _outside(module)
    is_whisper = isinstance(module, WhisperModule)
    layers = "layers" if is_whisper else "encoder.layers"
    parts = _OF_WHISPER if is_whisper else _OF_TOWER

    def naming(path: str) -> Rule | None:
        if not outside or path in outside:
            return outside.get(path)
        if (found := _LAYER.match(path)) is None:
            return None
        number, rest = found[1], found[2]
        for ours, theirs in _FUSED_NORMS.items():
            rest = rest.replace(ours, theirs)
        part, _, kind = rest.rpartition(".")
        if part in parts:
            return same(f"{parts[part].format(number)}.{kind}")
        if part == "self_attention.linear_qkv":
            return _qkv(f"{layers}.{number}.self_attn.", kind, module.model, is_whisper)
        return None

    return naming


def _outside(module: TransformerModule) -> dict[str, Rule]:
    """Return the rules of what is outside the layers; nothing for families without names."""
    both = ("weight", "bias")
    if isinstance(module, WhisperModule):
        return {
            **{f"embedding.first.{kind}": _window("conv1", kind) for kind in both},
            **{f"embedding.second.{kind}": _window("conv2", kind) for kind in both},
            "embedding.position.weight": same("embed_positions.weight"),
            **{f"encoder.final_layernorm.{kind}": same(f"layer_norm.{kind}") for kind in both},
        }
    position = {"embedding.position.weight": same("embeddings.position_embedding.weight")}
    patch = "embeddings.patch_embedding"
    if isinstance(module, ClipModule):
        side, channels = module.model.patch_size, module.model.num_channels
        return position | {
            "embedding.patch.weight": _patches(f"{patch}.weight", side, channels),
            "embedding.class_token.weight": Rule(
                ("embeddings.class_embedding",), lambda ts: ts[0][None], lambda full: [full[0]]
            ),
            **{f"embedding.norm.{kind}": same(f"pre_layrnorm.{kind}") for kind in both},
        }
    last = {f"encoder.final_layernorm.{kind}": same(f"post_layernorm.{kind}") for kind in both}
    bias = {"embedding.patch.bias": same(f"{patch}.bias")}
    if isinstance(module, SiglipModule):
        side, channels = module.model.patch_size, module.model.num_channels
        weight = _patches(f"{patch}.weight", side, channels)
        return position | last | bias | {"embedding.patch.weight": weight}
    if isinstance(module, Siglip2Module):
        return position | last | bias | {"embedding.patch.weight": same(f"{patch}.weight")}
    return {}


def _patches(name: str, side: int, channels: int) -> Rule:
    """Return the rule of a convolution ``[D, channels, side, side]`` over patches."""
    shape = (side, side, channels)
    return Rule(
        (name,),
        lambda tensors: tensors[0].permute(0, 2, 3, 1).flatten(1),
        lambda full: [full.unflatten(1, shape).permute(0, 3, 1, 2).contiguous()],
    )


def _window(convolution: str, kind: str) -> Rule:
    """Return the rule of a convolution ``[D, values, 3]`` over frames, or of its bias."""
    name = f"{convolution}.{kind}"
    if kind == "bias":
        return same(name)
    return Rule(
        (name,),
        lambda tensors: tensors[0].transpose(1, 2).flatten(1),
        lambda full: [full.unflatten(1, (3, -1)).transpose(1, 2).contiguous()],
    )


def _qkv(prefix: str, kind: str, model: EncoderConfig, is_whisper: bool) -> Rule:
    """Return the rule of a layer's joint matrix or bias, ``[q; k; v]`` of head after head.

    Whisper's keys have no bias. Ours starts at zero and is left out on the way back: it adds
    the same to all scores of a query, so softmax does not see it, and it has no gradient.
    """
    heads = model.num_attention_heads
    if is_whisper and kind == "bias":
        two = (f"{prefix}q_proj.bias", f"{prefix}v_proj.bias")
        return Rule(two, partial(_join_without_key, heads), partial(_split_without_key, heads))
    names = tuple(f"{prefix}{part}_proj.{kind}" for part in "qkv")
    return Rule(names, partial(_join_heads, heads), partial(_split_heads, heads))


def _join_heads(heads: int, tensors: Sequence[Tensor]) -> Tensor:
    by_head = [tensor.unflatten(0, (heads, -1)) for tensor in tensors]
    return torch.cat(by_head, dim=1).flatten(0, 1)


def _split_heads(heads: int, full: Tensor) -> list[Tensor]:
    by_head = full.unflatten(0, (heads, 3, -1))
    return [by_head[:, part].flatten(0, 1) for part in range(3)]


def _join_without_key(heads: int, tensors: Sequence[Tensor]) -> Tensor:
    query, value = tensors
    return _join_heads(heads, [query, torch.zeros_like(query), value])


def _split_without_key(heads: int, full: Tensor) -> list[Tensor]:
    query, _, value = _split_heads(heads, full)
    return [query, value]
