"""``config.json`` of models whose sizes a job gives, and of a LLaVA made of two of them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from disagg_train.config.models import GptConfig
from disagg_train.config.modules import (
    ClipModule,
    Siglip2Module,
    SiglipModule,
    TransformerModule,
    WhisperModule,
)
from disagg_train.errors import ConfigError

Values = dict[str, Any]

_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}
_LONGEST = 32768
"""Rotary positions have no end of their own, but transformers wants one."""

_CAUSAL: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
_TOWERS: Mapping[str, str] = {
    "clip_vision_model": "CLIPVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "siglip2_vision_model": "Siglip2VisionModel",
    "whisper": "WhisperModel",
}


def architecture(model_type: str) -> str:
    """Return the class of transformers that loads a module alone."""
    return {**_CAUSAL, **_TOWERS}[model_type]


def language_config(model: GptConfig) -> Values:
    """Return the config of an LLM without a checkpoint; its features choose the family.

    Raises:
        ConfigError: no family has these features together.
    """
    family = _family(model)
    values: Values = {
        "architectures": [_CAUSAL[family]],
        "model_type": family,
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.query_groups,
        "head_dim": model.head_width,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        "max_position_embeddings": _LONGEST,
        "rope_parameters": _rope(model),
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if family == "mixtral":
        values |= {"num_local_experts": model.num_experts}
        values |= {"intermediate_size": model.expert_ffn_size, "sliding_window": None}
    if family == "qwen3_moe":
        values |= {"num_experts": model.num_experts, "norm_topk_prob": True}
        values |= {"moe_intermediate_size": model.expert_ffn_size, "decoder_sparse_step": 1}
    if model.num_experts:
        values["num_experts_per_tok"] = model.experts_per_token
    return values


def _family(model: GptConfig) -> str:
    if model.qkv_bias and (model.qk_norm or model.num_experts):
        raise ConfigError(
            f"no family of transformers has qkv_bias with qk_norm={model.qk_norm} and "
            f"num_experts={model.num_experts}, so this LLM cannot be exported; qkv_bias alone is "
            f"qwen2, qk_norm alone qwen3, experts mixtral or with qk_norm qwen3_moe"
        )
    if model.num_experts:
        return "qwen3_moe" if model.qk_norm else "mixtral"
    if model.qk_norm:
        return "qwen3"
    return "qwen2" if model.qkv_bias else "llama"


def _rope(model: GptConfig) -> Values:
    rope: Values = {"rope_type": "default", "rope_theta": model.rotary_base}
    if model.rope_scaling is not None:
        rope |= {"rope_type": "llama3", **model.rope_scaling.model_dump()}
    return rope


def encoder_config(module: TransformerModule) -> Values | None:
    """Return the config of an encoder without a checkpoint, None where transformers has no like.

    It has the layers that the job built: those behind ``feature_layer`` never were.
    """
    if isinstance(module, WhisperModule):
        return _whisper(module)
    model = module.model
    values: Values = {
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_size,
        "num_hidden_layers": model.num_layers_run,
        "num_attention_heads": model.num_attention_heads,
        "hidden_act": _ACTIVATIONS[model.activation],
        "layer_norm_eps": model.norm_eps,
    }
    if isinstance(module, ClipModule | SiglipModule):
        values |= {"image_size": module.model.image_size, "patch_size": module.model.patch_size}
        values["num_channels"] = module.model.num_channels
    if isinstance(module, ClipModule):
        return _tower("clip_vision_model", values)
    if isinstance(module, SiglipModule):
        return _tower("siglip_vision_model", values | {"vision_use_head": False})
    if isinstance(module, Siglip2Module):
        values |= {"patch_size": module.model.patch_size, "vision_use_head": False}
        values |= {"num_patches": module.model.positions_per_side**2}
        return _tower("siglip2_vision_model", values)
    return None


def _tower(model_type: str, values: Values) -> Values:
    return {"architectures": [_TOWERS[model_type]], "model_type": model_type, **values}


def _whisper(module: WhisperModule) -> Values:
    model = module.model
    values = {
        "d_model": model.hidden_size,
        "encoder_layers": model.num_layers_run,
        "encoder_attention_heads": model.num_attention_heads,
        "encoder_ffn_dim": model.ffn_size,
        "activation_function": _ACTIVATIONS[model.activation],
        "num_mel_bins": model.num_mel_bins,
        "max_source_positions": model.max_tokens,
        "decoder_layers": 1,
        "decoder_attention_heads": model.num_attention_heads,
        "decoder_ffn_dim": model.ffn_size,
    }
    return _tower("whisper", values)


def unused_weights(module: TransformerModule) -> dict[str, Tensor]:
    """Return what transformers asks for and no output depends on: a last norm that is not built.

    Names are those of the tower alone; the norm does nothing but normalise.
    """
    if not isinstance(module, ClipModule | SiglipModule | Siglip2Module):
        return {}
    if module.model.norms_output:
        return {}
    width = module.model.hidden_size
    return {"post_layernorm.weight": torch.ones(width), "post_layernorm.bias": torch.zeros(width)}


def llava_config(
    module: SiglipModule | ClipModule,
    vision: Values,
    text: Values,
    image_token_id: int,
    pretrained: bool,
) -> Values:
    """Return the config of a ``LlavaForConditionalGeneration``.

    Args:
        module: the encoder.
        vision: its config alone.
        text: the LLM's config alone.
        image_token_id: id that stands where an image's tokens go.
        pretrained: whether the encoder has all layers of ``vision``, or those that were built.
    """
    model = module.model
    patches = model.patches_per_side**2
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": image_token_id,
        "image_seq_length": patches,
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu",
        "text_config": _inner(text),
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", False)),
        "vision_config": _inner(vision) | {"tie_last_hidden_states": model.norms_output},
        "vision_feature_layer": model.feature_layer if pretrained else -1,
        "vision_feature_select_strategy": ("default" if isinstance(module, ClipModule) else "full"),
    }


def _inner(config: Values) -> Values:
    """Return a config as it stands inside another one, which says the precision for both."""
    outer = ("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path")
    return {name: value for name, value in config.items() if name not in outer}
