"""Sizes from a checkpoint's config.json: taken as they are, or refused with the way out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.config.models import GptConfig, RopeScaling
from disagg_train.config.pretrained_language import LANGUAGE_FAMILIES
from disagg_train.driver.parity import one_process
from disagg_train.errors import ConfigError
from tests.unit.config.jobs import JOB

LLAMA: Mapping[str, Any] = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
TOWER = {"model_type": "siglip_vision_model", "hidden_size": 32}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def job_of(
    config: Mapping[str, Any], module: str = "language", overrides: tuple[str, ...] = ()
) -> JobConfig:
    """Return the small job with one of its modules from a checkpoint in the folder `brought`."""
    Path("brought").mkdir(exist_ok=True)
    Path("brought/config.json").write_text(json.dumps(config))
    modules = {name: dict(each) for name, each in JOB["modules"].items()}
    modules["language"]["parallel"] = {"dp": 4}
    del modules[module]["model"]
    modules[module]["pretrained"] = "brought"
    return load_job({**JOB, "modules": modules}, overrides)


def model_of(config: Mapping[str, Any], *overrides: str) -> GptConfig:
    return job_of(config, overrides=overrides).language.model


def refusal_of(config: Mapping[str, Any], *overrides: str, module: str = "language") -> str:
    with pytest.raises(ConfigError) as caught:
        job_of(config, module, overrides)
    return str(caught.value)


def test_sizes_come_from_the_checkpoint() -> None:
    assert model_of(LLAMA) == GptConfig(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        num_query_groups=2,
        ffn_hidden_size=48,
        vocab_size=64,
        norm_eps=1e-6,
        rotary_base=500000.0,
    )


def test_fields_that_are_given_go_before_the_checkpoints() -> None:
    model = model_of(LLAMA, "modules.language.model.num_layers=1")
    assert (model.num_layers, model.hidden_size) == (1, 32)


@pytest.mark.parametrize(
    ("field", "value"),
    [("ffn_hidden_size", 64), ("num_layers", 3), ("qkv_bias", True), ("vocab_size", 128)],
)
def test_given_fields_that_the_weights_do_not_fit_are_refused(field: str, value: object) -> None:
    message = refusal_of(LLAMA, f"modules.language.model.{field}={value}")
    assert message.startswith(f"modules.language.pretrained: model.{field} is {value}, but ")


def test_a_local_folder_is_known_by_its_whole_path() -> None:
    assert job_of(LLAMA).language.pretrained == str(Path("brought").absolute())


def test_the_kind_comes_from_the_checkpoint_where_it_is_not_given() -> None:
    assert job_of(LLAMA, overrides=("modules.language.kind=null",)).language.kind == "gpt"


def test_a_job_keeps_its_sizes_however_it_is_read_again() -> None:
    job = job_of(LLAMA, overrides=("modules.language.model.num_layers=1",))
    for again in (load_job(job), JobConfig.model_validate(job.model_dump()), one_process(job)):
        assert again.language.model == job.language.model
        assert again.language.pretrained == job.language.pretrained


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("qwen2", {"qkv_bias": True, "qk_norm": False}),
        ("qwen3", {"qkv_bias": False, "qk_norm": True, "head_size": 128}),
        ("mixtral", {"num_experts": 8, "experts_per_token": 2, "expert_ffn_hidden_size": 48}),
    ],
)
def test_families_differ(model_type: str, expected: dict[str, Any]) -> None:
    model = model_of({**LLAMA, "model_type": model_type})
    assert {name: getattr(model, name) for name in expected} == expected


@pytest.mark.parametrize("name", ["num_experts", "num_local_experts"])
def test_qwen_s_experts_have_a_width_of_their_own(name: str) -> None:
    experts = {name: 4, "num_experts_per_tok": 1, "moe_intermediate_size": 24}
    model = model_of({**LLAMA, "model_type": "qwen3_moe", "norm_topk_prob": True, **experts})
    assert (model.num_experts, model.experts_per_token, model.expert_ffn_size) == (4, 1, 24)
    assert model.qk_norm


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 500000.0, "rope_scaling": LLAMA3},
        {"rope_parameters": {"rope_theta": 500000.0, **LLAMA3}},
    ],
    ids=["transformers 4", "transformers 5"],
)
def test_positions_are_read_in_both_forms(rope: Mapping[str, Any]) -> None:
    plain = {name: value for name, value in LLAMA.items() if name != "rope_theta"}
    model = model_of(plain | dict(rope))
    assert model.rotary_base == 500000.0
    assert model.rope_scaling == RopeScaling(factor=8.0)


@pytest.mark.parametrize("inner", [True, False])
def test_the_llm_of_a_multimodal_checkpoint_is_its_text_config(inner: bool) -> None:
    """Llava says beside its parts whether the embedding is tied; older ones say it inside."""
    text = {**LLAMA, "tie_word_embeddings": inner}
    config = {"model_type": "llava", "text_config": text, "vision_config": TOWER}
    model = model_of({**config, "tie_word_embeddings": not inner})
    assert (model.hidden_size, model.tie_embeddings) == (32, True)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"model_type": "gemma"}, "model_type is 'gemma'"),
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16},
            "sliding_window is 16",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"model_type": "qwen3_moe", "norm_topk_prob": False}, "norm_topk_prob is False"),
        (
            {"model_type": "qwen3_moe", "norm_topk_prob": True, "decoder_sparse_step": 2},
            "decoder_sparse_step is 2",
        ),
        (
            {"model_type": "qwen3_moe", "norm_topk_prob": True, "mlp_only_layers": [0]},
            "mlp_only_layers is [0]",
        ),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(changed: dict[str, Any], field: str) -> None:
    message = refusal_of({**LLAMA, **changed})
    assert message.startswith("modules.language.pretrained: ")
    assert field in message


def test_a_window_that_is_not_in_use_is_none() -> None:
    qwen = {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 4096}
    assert model_of({**LLAMA, **qwen}).qkv_bias


def test_a_checkpoint_of_another_kind_is_refused() -> None:
    message = refusal_of(LLAMA, module="vision")
    assert "modules.vision.pretrained: 'brought' holds a model of type 'llama'" in message
    assert "use kind: gpt" in message


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_a_folder_without_a_sound_config_is_named(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "empty").mkdir()
    if content is not None:
        (tmp_path / "empty" / "config.json").write_text(content)
    message = refusal_of(LLAMA, "modules.language.pretrained=empty")
    assert f"modules.language.pretrained: {'cannot read ' if content == '{' else ''}" in message
    assert str(tmp_path / "empty") in message


@pytest.mark.parametrize("folder", ["./nowhere", "/nowhere", "a/b/c"])
def test_a_folder_that_is_not_there_is_named(folder: str) -> None:
    message = refusal_of(LLAMA, f"modules.language.pretrained={folder}")
    assert message == f"modules.language.pretrained: there is no folder {folder!r}"


def test_a_hub_id_that_cannot_be_had_says_that_a_local_folder_would_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def offline(*_: object, **__: object) -> str:
        raise OSError("no way to the hub\nand much more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    message = refusal_of(LLAMA, "modules.language.pretrained=someone/something")
    assert message == (
        "modules.language.pretrained: there is no folder 'someone/something' here, and as a hub "
        "id it cannot be had: OSError: no way to the hub; a local folder works without the hub"
    )


def test_a_hub_id_stays_as_it_is_and_sizes_come_from_its_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot(name: str, allow_patterns: list[str]) -> str:
        assert (name, allow_patterns) == ("someone/something", ["config.json"])
        return str(tmp_path / "brought")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    language = job_of(LLAMA, overrides=("modules.language.pretrained=someone/something",)).language
    assert (language.pretrained, language.model.ffn_hidden_size) == ("someone/something", 48)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", LANGUAGE_FAMILIES)
def test_what_a_config_leaves_out_is_what_transformers_has_by_default(model_type: str) -> None:
    from transformers import AutoConfig

    asked = {"norm_topk_prob": True} if model_type == "qwen3_moe" else {}
    whole = AutoConfig.for_model(model_type, **asked).to_dict()
    sizes_of = LANGUAGE_FAMILIES[model_type]
    found, expected = (GptConfig(**sizes_of(config)) for config in (asked, whole))
    fields = {"num_query_groups": "query_groups", "head_size": "head_width"}
    for name in GptConfig.model_fields:
        field = fields.get(name, name)
        assert getattr(found, field) == getattr(expected, field), name
