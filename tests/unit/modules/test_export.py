"""What a run trained goes back into files of transformers; what it did not stays as it was."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from disagg_train.errors import CheckpointError, ConfigError
from disagg_train.export import export
from tests.unit.modules.exported_runs import (
    ENCODERS,
    LANGUAGES,
    Weights,
    finished_run,
    save_encoder,
    save_language,
    tensors_in,
)

_GPT: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "ffn_hidden_size": 48,
    "vocab_size": 64,
}
_QKV = "language.gpt.decoder.layers.1.self_attention.linear_qkv.weight"


def same_bytes(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether two checkpoints hold the same tensors under the same names, bit by bit."""
    return sorted(left) == sorted(right) and all(
        left[name].dtype == right[name].dtype
        and left[name].view(torch.uint8).equal(right[name].view(torch.uint8))
        for name in left
    )


def loaded(folder: Path, auto: str = "AutoModelForCausalLM") -> Any:
    """Load with transformers, which must find everything that it wants and nothing else."""
    import transformers

    model, found = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert not found["mismatched_keys"]
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", LANGUAGES)
def test_an_untouched_llm_comes_back_bit_by_bit(
    tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    original = save_language(tmp_path / "hf", family, dtype)
    run = finished_run(tmp_path / "run", None, {"pretrained": str(original)})
    export(run, tmp_path / "out")
    assert same_bytes(tensors_in(tmp_path / "out" / "language"), tensors_in(original))
    for name in ("config.json", "generation_config.json"):
        was, now = (
            json.loads((f / name).read_text()) for f in (original, tmp_path / "out/language")
        )
        assert now == was
    assert loaded(tmp_path / "out" / "language").dtype == dtype


@pytest.mark.parametrize("feature_layer", [-1, -2])
@pytest.mark.parametrize("family", ENCODERS)
def test_an_untouched_encoder_comes_back_with_what_is_not_run_here(
    tmp_path: Path, family: str, feature_layer: int
) -> None:
    original = save_encoder(tmp_path / "hf", family)
    vision = {"pretrained": str(original), "model": {"feature_layer": feature_layer}}
    run = finished_run(tmp_path / "run", vision, {"model": _GPT})
    export(run, tmp_path / "out", layout="modules")
    folder = tmp_path / "out" / "vision"
    assert same_bytes(tensors_in(folder), tensors_in(original))
    loaded(folder, "AutoModelForSpeechSeq2Seq" if family == "whisper" else "AutoModel")
    assert (folder / "projector.safetensors").exists()


def test_weights_that_training_rounded_and_froze_come_back_bit_by_bit(tmp_path: Path) -> None:
    original = save_language(tmp_path / "hf", "llama")
    language = {"pretrained": str(original)}
    run = finished_run(tmp_path / "run", None, language, precision="bf16")
    export(run, tmp_path / "out")
    assert same_bytes(tensors_in(tmp_path / "out" / "language"), tensors_in(original))


def test_only_what_was_trained_changes(tmp_path: Path) -> None:
    def train(weights: Weights) -> None:
        weights[_QKV] = weights[_QKV] + 1

    original = save_language(tmp_path / "hf", "qwen2")
    run = finished_run(tmp_path / "run", None, {"pretrained": str(original)}, train)
    export(run, tmp_path / "out")
    before, after = tensors_in(original), tensors_in(tmp_path / "out" / "language")
    layer = "model.layers.1.self_attn"
    moved = {f"{layer}.{part}_proj.weight" for part in "qkv"}
    assert {name for name in before if not before[name].equal(after[name])} == moved
    for name in moved:
        torch.testing.assert_close(after[name], before[name] + 1)


def test_low_rank_additions_are_merged(tmp_path: Path) -> None:
    linear = "language.gpt.decoder.layers.0.self_attention.linear_proj"
    a_RI, b_OR = np.ones((2, 32), np.float32), np.full((32, 2), 0.5, np.float32)

    def train(weights: Weights) -> None:
        weights |= {f"{linear}.lora_A": a_RI, f"{linear}.lora_B": b_OR}

    original = save_language(tmp_path / "hf", "llama")
    language = {"pretrained": str(original), "lora": {"rank": 2, "alpha": 6.0}}
    run = finished_run(tmp_path / "run", None, language, train)
    export(run, tmp_path / "out")
    before, after = tensors_in(original), tensors_in(tmp_path / "out" / "language")
    name = "model.layers.0.self_attn.o_proj.weight"
    torch.testing.assert_close(after.pop(name), before.pop(name) + 3.0)
    assert same_bytes(before, after)


def test_a_head_that_is_tied_is_not_copied_from_before_training(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    original = save_language(tmp_path / "hf", "qwen2-tied")
    tensors = tensors_in(original)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, original / "model.safetensors", metadata={"format": "pt"})

    def train(weights: Weights) -> None:
        weights["language.gpt.embedding.word_embeddings.weight"] += 1

    run = finished_run(tmp_path / "run", None, {"pretrained": str(original)}, train)
    export(run, tmp_path / "out")
    model = loaded(tmp_path / "out" / "language")
    torch.testing.assert_close(model.lm_head.weight, tensors["lm_head.weight"] + 1)


@pytest.mark.parametrize(
    ("features", "architecture"),
    [
        ({}, "LlamaForCausalLM"),
        ({"tie_embeddings": True, "head_size": 16}, "LlamaForCausalLM"),
        ({"qkv_bias": True}, "Qwen2ForCausalLM"),
        ({"qk_norm": True}, "Qwen3ForCausalLM"),
        ({"num_experts": 4, "expert_ffn_hidden_size": 24}, "MixtralForCausalLM"),
        ({"num_experts": 4, "qk_norm": True}, "Qwen3MoeForCausalLM"),
    ],
)
def test_an_llm_from_scratch_becomes_a_family_with_its_features(
    tmp_path: Path, features: dict[str, Any], architecture: str
) -> None:
    run = finished_run(tmp_path / "run", None, {"model": _GPT | features})
    export(run, tmp_path / "out")
    assert type(loaded(tmp_path / "out" / "language")).__name__ == architecture


def test_an_llm_that_no_family_is_like_is_refused(tmp_path: Path) -> None:
    language = {"model": _GPT | {"qkv_bias": True, "qk_norm": True}}
    run = finished_run(tmp_path / "run", None, language)
    with pytest.raises(ConfigError, match="no family of transformers has qkv_bias with qk_norm"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("vision", "language", "feature_layer"),
    [("siglip", "qwen2", -1), ("siglip", "qwen2-tied", -2), ("clip", "llama", -2)],
)
def test_a_llava_is_made_of_a_tower_an_llm_and_the_projector(
    tmp_path: Path, vision: str, language: str, feature_layer: int
) -> None:
    tower = save_encoder(tmp_path / "tower", vision)
    llm = save_language(tmp_path / "llm", language)
    run = finished_run(
        tmp_path / "run",
        {"pretrained": str(tower), "model": {"feature_layer": feature_layer}},
        {"pretrained": str(llm)},
    )
    export(run, tmp_path / "out", image_token_id=63)
    model = loaded(tmp_path / "out", "AutoModelForImageTextToText")
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    config = model.config
    assert (config.image_token_index, config.vision_feature_layer) == (63, feature_layer)
    assert config.vision_feature_select_strategy == ("default" if vision == "clip" else "full")
    parts = tensors_in(tmp_path / "out")
    for name, tensor in tensors_in(llm).items():
        assert parts.pop(f"language_model.{name}").equal(tensor)
    for name, tensor in tensors_in(tower).items():
        assert parts.pop(f"vision_tower.vision_model.{name}").equal(tensor)
    assert sorted(parts) == [
        f"multi_modal_projector.linear_{n}.{kind}" for n in (1, 2) for kind in ("bias", "weight")
    ]


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_a_llava_from_scratch_has_the_layers_that_were_built(tmp_path: Path, kind: str) -> None:
    sizes = {"num_layers": 3, "hidden_size": 24, "num_attention_heads": 4, "ffn_hidden_size": 40}
    sizes |= {"image_size": 28, "patch_size": 7, "feature_layer": -2}
    run = finished_run(tmp_path / "run", {"kind": kind, "model": sizes}, {"model": _GPT})
    export(run, tmp_path / "out", image_token_id=63)
    model = loaded(tmp_path / "out", "AutoModelForImageTextToText")
    assert len(model.model.vision_tower.encoder.layers) == 2
    assert model.config.vision_feature_layer == -1
    loaded(tmp_path / "out" / "vision", "AutoModel")


def test_modules_of_a_llava_checkpoint_become_models_alone(tmp_path: Path) -> None:
    tower = save_encoder(tmp_path / "tower", "siglip")
    llm = save_language(tmp_path / "llm", "qwen2")
    run = finished_run(tmp_path / "a", {"pretrained": str(tower)}, {"pretrained": str(llm)})
    export(run, tmp_path / "llava", layout="llava", image_token_id=63)
    both = {"pretrained": str(tmp_path / "llava")}
    run = finished_run(tmp_path / "b", both, both)
    export(run, tmp_path / "out", image_token_id=63)
    assert same_bytes(tensors_in(tmp_path / "out" / "language"), tensors_in(llm))
    assert same_bytes(tensors_in(tmp_path / "out" / "vision"), tensors_in(tower))
    loaded(tmp_path / "out" / "language")
    loaded(tmp_path / "out" / "vision", "AutoModel")


def test_large_models_are_written_in_several_files(tmp_path: Path) -> None:
    original = save_language(tmp_path / "hf", "llama")
    run = finished_run(tmp_path / "run", None, {"pretrained": str(original)})
    export(run, tmp_path / "out", shard_bytes=20_000)
    folder = tmp_path / "out" / "language"
    files = sorted(folder.glob("*.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(files) > 2
    assert all(file.stat().st_size < 24_000 for file in files)
    assert {file.name for file in files} == set(index["weight_map"].values())
    assert same_bytes(tensors_in(folder), tensors_in(original))
    loaded(folder)


def test_another_precision_can_be_asked_for(tmp_path: Path) -> None:
    original = save_language(tmp_path / "hf", "llama")
    run = finished_run(tmp_path / "run", None, {"pretrained": str(original)})
    export(run, tmp_path / "out", dtype="bf16")
    expected = {name: tensor.bfloat16() for name, tensor in tensors_in(original).items()}
    assert same_bytes(tensors_in(tmp_path / "out" / "language"), expected)
    assert loaded(tmp_path / "out" / "language").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("projector", "reason"),
    [
        ({"kind": "linear"}, "projector is of kind 'linear' with merge=1"),
        ({"merge": 4}, "projector is of kind 'mlp' with merge=4"),
    ],
)
def test_what_no_llava_is_like_is_written_as_modules(
    tmp_path: Path, projector: dict[str, Any], reason: str
) -> None:
    tower = save_encoder(tmp_path / "tower", "siglip")
    vision = {"pretrained": str(tower), "projector": projector}
    run = finished_run(tmp_path / "run", vision, {"model": _GPT})
    notes = export(run, tmp_path / "out", image_token_id=63)
    assert reason in notes[0]
    assert not (tmp_path / "out" / "config.json").exists()
    assert (tmp_path / "out" / "vision" / "projector.safetensors").exists()
    with pytest.raises(ConfigError, match=reason):
        export(run, tmp_path / "other", layout="llava", image_token_id=63)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", None, {"model": _GPT})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(CheckpointError, match="is there already"):
        export(run, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]


def test_the_tokenizer_and_the_image_processor_go_along(tmp_path: Path) -> None:
    from PIL import Image
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    from examples.llava.tiny import save_models, save_tokenizer

    save_models(tmp_path, save_tokenizer(tmp_path / "qwen"))
    run = finished_run(
        tmp_path / "run",
        {"pretrained": str(tmp_path / "siglip")},
        {"pretrained": str(tmp_path / "qwen")},
        data={"kind": "chat", "options": {"sources": [{"path": "conversations.json"}]}},
    )
    export(run, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = loaded(tmp_path / "out", "AutoModelForImageTextToText")
    image_token = tokenizer.convert_ids_to_tokens(model.config.image_token_index)
    assert image_token == "<|image_pad|>"
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    chat = [{"role": "user", "content": f"{image_token}\nWhat is it?"}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(images=Image.new("RGB", (50, 40)), text=text, return_tensors="pt")
    patches = model.config.image_seq_length
    assert int((inputs["input_ids"] == model.config.image_token_index).sum()) == patches
    assert model(**inputs).logits.isfinite().all()
    AutoTokenizer.from_pretrained(tmp_path / "out" / "language")
    AutoImageProcessor.from_pretrained(tmp_path / "out" / "vision")


def test_an_encoder_unknown_to_transformers_leaves_by_its_own_names(tmp_path: Path) -> None:
    sizes = {"num_layers": 1, "hidden_size": 24, "num_attention_heads": 4, "patch_size": 7}
    run = finished_run(tmp_path / "run", {"kind": "vit", "model": sizes}, {"model": _GPT})
    notes = export(run, tmp_path / "out", image_token_id=63)
    assert "kind is 'vit'; a LLaVA's is clip or siglip" in notes[0]
    names = set(tensors_in(tmp_path / "out" / "vision"))
    assert "encoder.layers.0.self_attention.linear_qkv.weight" in names
    assert not any(name.startswith("projector.") for name in names)
    module = json.loads((tmp_path / "out" / "vision" / "module.json").read_text())
    assert module["model"]["patch_size"] == 7
