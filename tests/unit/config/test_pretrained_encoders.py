"""Sizes of encoders are those that transformers takes from the same config."""

from typing import Any

import pytest
from pydantic import ValidationError

from disagg_train.config.models import ClipConfig, Siglip2Config, SiglipConfig, WhisperConfig
from disagg_train.config.modules import ClipModule, Siglip2Module, SiglipModule, WhisperModule
from disagg_train.config.pretrained import part_of
from disagg_train.config.pretrained_encoders import ENCODER_FAMILIES
from disagg_train.errors import ConfigError

CONFIGS = {
    "clip": ClipConfig,
    "siglip": SiglipConfig,
    "siglip2": Siglip2Config,
    "whisper": WhisperConfig,
}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": 7,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-3,
}


def sizes(model_type: str, config: dict[str, Any]) -> Any:
    family = model_type.removesuffix("_vision_model")
    return CONFIGS[family](**ENCODER_FAMILIES[model_type](config))


@pytest.mark.parametrize("model_type", ENCODER_FAMILIES)
def test_what_a_config_leaves_out_is_transformers_own(model_type: str) -> None:
    from transformers import AutoConfig

    theirs = AutoConfig.for_model(model_type)
    theirs = getattr(theirs, "vision_config", theirs).to_dict()
    assert sizes(model_type, {}) == sizes(model_type, theirs)


@pytest.mark.parametrize("model_type", ["clip", "siglip", "siglip2"])
def test_a_tower_within_a_model_is_found(model_type: str) -> None:
    alone = sizes(f"{model_type}_vision_model", SMALL)
    assert sizes(model_type, {"text_config": {}, "vision_config": SMALL}) == alone
    assert (alone.num_layers, alone.hidden_size, alone.ffn_size) == (3, 32, 48)
    assert (alone.patch_size, alone.activation, alone.norm_eps) == (7, "gelu", 1e-3)


@pytest.mark.parametrize(("named", "layer"), [(-1, -1), (-2, -2), (12, -1), (11, -2), (1, -12)])
def test_a_llavas_feature_layer_counts_from_the_end(named: int, layer: int) -> None:
    assert sizes("clip", {"vision_feature_layer": named}).feature_layer == layer


@pytest.mark.parametrize(("said", "layer"), [({}, -2), ({"vision_feature_layer": -1}, -1)])
def test_a_llavas_tower_has_its_feature_layer(said: dict[str, Any], layer: int) -> None:
    tower = SMALL | {"model_type": "clip_vision_model"}
    part = part_of({"model_type": "llava", "vision_config": tower} | said, language=False)
    assert sizes("clip_vision_model", part).feature_layer == layer


@pytest.mark.parametrize(
    ("model_type", "config", "names"),
    [
        ("siglip", {"hidden_act": "relu"}, "'relu'"),
        ("siglip", {"vision_feature_layer": [-1, -2]}, "one layer only"),
        ("siglip", {"vision_feature_select_strategy": "default"}, "'full'"),
        ("clip", {"vision_feature_select_strategy": "full"}, "'default'"),
        ("siglip2", {"num_patches": 200}, "200"),
        ("siglip2", {"patch_size": [16, 14]}, r"\[16, 14\]"),
    ],
)
def test_what_encoders_have_not_is_refused(
    model_type: str, config: dict[str, Any], names: str
) -> None:
    with pytest.raises(ConfigError, match=names):
        ENCODER_FAMILIES[model_type](config)


def test_the_last_norm_is_used_where_llava_reads_it() -> None:
    assert not sizes("siglip", {}).last_norm
    assert sizes("siglip", {"tie_last_hidden_states": True}).last_norm
    assert not sizes("clip", {"tie_last_hidden_states": True}).last_norm
    assert sizes("whisper", {}).last_norm


MODULES = {
    "clip": (ClipModule, {"image_size": 28, "patch_size": 7}),
    "siglip": (SiglipModule, {"image_size": 28, "patch_size": 7}),
    "siglip2": (Siglip2Module, {"patch_size": 7}),
    "whisper": (WhisperModule, {"max_tokens": 20}),
}


@pytest.mark.parametrize(
    ("kind", "merge", "message"),
    [
        ("clip", 4, "use merge: 1"),
        ("siglip", 3, r"does not divide the 16 patches of an image; use one of \[1, 2, 4, 8, 16\]"),
        ("siglip2", 2, "use 1 or 4"),
        ("siglip2", 8, "use 4 or 9"),
        ("whisper", 3, "does not divide the 20 tokens of a recording"),
    ],
)
def test_tokens_that_cannot_be_joined_are_refused_with_what_can(
    kind: str, merge: int, message: str
) -> None:
    module, sizes_of = MODULES[kind]
    model = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2} | sizes_of
    fields = {"kind": kind, "group": "g", "model": model}
    module.model_validate(fields)
    with pytest.raises(ValidationError, match=message):
        module.model_validate(fields | {"projector": {"merge": merge}})
