"""Sizes of encoders from ``config.json`` of a Hugging Face checkpoint."""

from collections.abc import Callable, Mapping
from math import isqrt
from typing import Any

from disagg_train.config.models import Activation
from disagg_train.errors import ConfigError

Values = Mapping[str, Any]

_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
_LAYERS = {
    "num_layers": ("num_hidden_layers", 12),
    "hidden_size": ("hidden_size", 768),
    "num_attention_heads": ("num_attention_heads", 12),
    "ffn_hidden_size": ("intermediate_size", 3072),
    "num_channels": ("num_channels", 3),
}
"""Our field -> theirs, and the value that a config leaves out."""


def _clip(config: Values) -> dict[str, Any]:
    if config.get("vision_feature_select_strategy") == "full":
        raise ConfigError(
            "vision_feature_select_strategy is 'full', but CLIP's class token does not go to the "
            "LLM here; use a checkpoint with 'default'"
        )
    sizes = {"image_size": ("image_size", 224), "patch_size": ("patch_size", 32)}
    return _common(config, _LAYERS | sizes, "quick_gelu", 1e-5)


def _siglip(config: Values) -> dict[str, Any]:
    if config.get("vision_feature_select_strategy") == "default":
        raise ConfigError(
            "vision_feature_select_strategy is 'default', which leaves the first patch out where "
            "there is no class token; use a checkpoint with 'full'"
        )
    sizes = {"image_size": ("image_size", 224), "patch_size": ("patch_size", 16)}
    common = _common(config, _LAYERS | sizes, "gelu_pytorch_tanh", 1e-6)
    return common | {"last_norm": bool(config.get("tie_last_hidden_states", False))}


def _siglip2(config: Values) -> dict[str, Any]:
    common = _common(
        config, _LAYERS | {"patch_size": ("patch_size", 16)}, "gelu_pytorch_tanh", 1e-6
    )
    positions, patch = int(config.get("num_patches", 256)), common["patch_size"]
    side = isqrt(positions)
    if side**2 != positions:
        raise ConfigError(f"num_patches is {positions}, which is no square of positions")
    if not isinstance(patch, int):
        if len(set(patch)) > 1:
            raise ConfigError(f"patch_size is {patch}, but patches are squares here")
        common["patch_size"] = patch[0]
    return common | {
        "positions_per_side": side,
        "last_norm": bool(config.get("tie_last_hidden_states", False)),
    }


def _whisper(config: Values) -> dict[str, Any]:
    sizes = {
        "num_layers": ("encoder_layers", 4),
        "hidden_size": ("d_model", 384),
        "num_attention_heads": ("encoder_attention_heads", 6),
        "ffn_hidden_size": ("encoder_ffn_dim", 1536),
        "num_mel_bins": ("num_mel_bins", 80),
        "max_tokens": ("max_source_positions", 1500),
    }
    named = dict(config) | {"hidden_act": config.get("activation_function", "gelu")}
    return _common(named, sizes, "gelu", 1e-5)


def _common(
    config: Values, sizes: Mapping[str, tuple[str, int]], activation: str, norm_eps: float
) -> dict[str, Any]:
    found = {ours: config.get(theirs, default) for ours, (theirs, default) in sizes.items()}
    return found | {
        "activation": _activation(config.get("hidden_act", activation)),
        "norm_eps": config.get("layer_norm_eps", norm_eps),
        "feature_layer": _feature_layer(config.get("vision_feature_layer", -1), found),
    }


def _activation(name: str) -> Activation:
    if name not in _ACTIVATIONS:
        raise ConfigError(
            f"its activation is {name!r}, which encoders do not have here; known are "
            f"{sorted(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def _feature_layer(layer: Any, sizes: Values) -> int:
    """Return which layer's output LLaVA uses, counted from the end."""
    if not isinstance(layer, int):
        raise ConfigError(f"vision_feature_layer is {layer!r}; outputs of one layer only are used")
    from_the_start = layer >= 0  # where 0 is the embedding
    return layer - int(sizes["num_layers"]) - 1 if from_the_start else layer


def _vision_part(
    sizes_of: Callable[[Values], dict[str, Any]],
) -> Callable[[Values], dict[str, Any]]:
    """Return what takes the config of a tower, or of a model with one."""
    return lambda config: sizes_of(config.get("vision_config", config))


FEATURE_FIELDS = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
"""What a LLaVA's config says of its tower's output, and what it means where it leaves that out."""

ENCODER_FAMILIES: Mapping[str, Callable[[Values], dict[str, Any]]] = {
    "clip_vision_model": _clip,
    "clip": _vision_part(_clip),
    "siglip_vision_model": _siglip,
    "siglip": _vision_part(_siglip),
    "siglip2_vision_model": _siglip2,
    "siglip2": _vision_part(_siglip2),
    "whisper": _whisper,
}
"""model_type -> what turns its config into the fields of our ``model``.

These raise a ``ConfigError`` where a tower has what encoders here have not.
"""
