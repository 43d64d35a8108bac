"""Sizes of LLMs from ``config.json`` of a Hugging Face checkpoint.

A config that is part of another model's leaves out what its family has by default, so the
families' defaults stand here. What would be run wrongly is refused.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from disagg_train.errors import ConfigError

Values = Mapping[str, Any]

_LLAMA: Values = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
}
_QWEN: Values = {
    **_LLAMA,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "use_sliding_window": False,
}
_DEFAULTS: Mapping[str, Values] = {
    "llama": _LLAMA,
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
    "mixtral": {
        **_LLAMA,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    "qwen3_moe": {
        **_QWEN,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": None,
    },
}


def _language_sizes(model_type: str, config: Values) -> dict[str, Any]:
    """Return the fields of ``GptConfig`` that a checkpoint's config gives.

    Raises:
        ConfigError: the checkpoint asks for something that is not run here.
    """
    values = {**_DEFAULTS[model_type], **config}
    _refuse_others(values)
    rope = _rope(values)
    sizes = {
        "num_layers": values["num_hidden_layers"],
        "hidden_size": values["hidden_size"],
        "num_attention_heads": values["num_attention_heads"],
        "num_query_groups": values["num_key_value_heads"],
        "head_size": values["head_dim"],
        "ffn_hidden_size": values["intermediate_size"],
        "vocab_size": values["vocab_size"],
        "norm_eps": values["rms_norm_eps"],
        "rotary_base": rope["rope_theta"],
        "qkv_bias": model_type == "qwen2",
        "qk_norm": model_type in ("qwen3", "qwen3_moe"),
        "tie_embeddings": bool(values["tie_word_embeddings"]),
    }
    return sizes | _rope_scaling(rope) | _experts(values)


def _rope(values: Values) -> Values:
    """Return how positions turn, in transformers' newer form or its older one."""
    older = {"rope_theta": values["rope_theta"], **(values.get("rope_scaling") or {})}
    if "type" in older:
        older.setdefault("rope_type", older["type"])
    return {"rope_type": "default", **older, **(values.get("rope_parameters") or {})}


def _rope_scaling(rope: Values) -> dict[str, Any]:
    if rope["rope_type"] == "default":
        return {}
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if missing := [name for name in names if name not in rope]:
        raise ConfigError(f"rope_type is 'llama3', but its {', '.join(missing)} are not given")
    return {"rope_scaling": {name: rope[name] for name in names}}


def _experts(values: Values) -> dict[str, Any]:
    """Return what says how many experts there are; transformers 5 has one name for all families."""
    number = values.get("num_local_experts") or values.get("num_experts")
    if number is None:
        return {}
    width = values.get("moe_intermediate_size") or values["intermediate_size"]
    return {
        "num_experts": number,
        "experts_per_token": values["num_experts_per_tok"],
        "expert_ffn_hidden_size": width,
    }


def _refuse_others(values: Values) -> None:
    """Refuse what this LLM would compute otherwise, or not at all."""
    for field, value, wanted in _choices(values):
        if value not in wanted:
            raise ConfigError(
                f"{field} is {value!r}; LLMs run here with {' or '.join(map(repr, wanted))} only"
            )
    if values.get("mlp_only_layers"):
        raise ConfigError(
            f"mlp_only_layers is {values['mlp_only_layers']}; LLMs run here with experts in "
            f"every layer or in none"
        )


def _choices(values: Values) -> Iterable[tuple[str, Any, tuple[Any, ...]]]:
    """Yield (field, its value, the values that are run)."""
    yield "hidden_act", values["hidden_act"], ("silu",)
    yield "attention_bias", bool(values["attention_bias"]), (False,)
    yield "mlp_bias", bool(values["mlp_bias"]), (False,)
    rope = _rope(values)
    yield "rope_type", rope["rope_type"], ("default", "llama3")
    yield "partial_rotary_factor", rope.get("partial_rotary_factor", 1.0), (1.0,)
    if values.get("use_sliding_window", True):
        yield "sliding_window", values["sliding_window"], (None,)
    yield "norm_topk_prob", values.get("norm_topk_prob", True), (True,)
    yield "decoder_sparse_step", values.get("decoder_sparse_step", 1), (1,)


LANGUAGE_FAMILIES: Mapping[str, Callable[[Values], dict[str, Any]]] = {
    model_type: partial(_language_sizes, model_type) for model_type in _DEFAULTS
}
"""model_type -> what turns its config into the fields of our ``model``."""
