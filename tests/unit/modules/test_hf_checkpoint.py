"""Tensors of a checkpoint: found wherever they are, read exactly, named when they are amiss."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from disagg_train.config.models import GptConfig
from disagg_train.errors import CheckpointError
from disagg_train.modules.hf.checkpoint import Checkpoint
from disagg_train.modules.hf.language import language_naming
from disagg_train.modules.hf.rules import same

WIDTH = 8
MODEL = GptConfig(
    num_layers=1,
    hidden_size=WIDTH,
    num_attention_heads=4,
    num_query_groups=2,
    head_size=4,
    ffn_hidden_size=6,
    num_experts=2,
)
LAYER = "layers.0.self_attn."


def matrix(rows: int, start: float = 0.0) -> Tensor:
    return start + torch.arange(rows * WIDTH, dtype=torch.float32).view(rows, WIDTH)


def attention(prefix: str) -> dict[str, Tensor]:
    """Return queries of 4 heads, keys and values of 2, each 4 wide."""
    rows = {"q": 16, "k": 8, "v": 8}
    return {
        f"{prefix}{LAYER}{part}_proj.weight": matrix(count, 1000.0 * number)
        for number, (part, count) in enumerate(rows.items())
    }


def refusal(folder: Path, name: str, shape: Sequence[int]) -> str:
    with pytest.raises(CheckpointError) as caught, Checkpoint(folder) as checkpoint:
        checkpoint.read(same(name), shape)
    return str(caught.value)


def test_queries_keys_and_values_are_joined_by_query_group(tmp_path: Path) -> None:
    tensors = attention("model.")
    save_file(tensors, tmp_path / "model.safetensors")
    rule = language_naming(MODEL, "qwen3")("gpt.decoder.layers.0.self_attention.linear_qkv.weight")
    assert rule is not None
    with Checkpoint(tmp_path) as checkpoint:
        full = checkpoint.read(rule, [32, WIDTH])
    q, k, v = tensors.values()
    assert torch.equal(full, torch.cat([q[:8], k[:4], v[:4], q[8:], k[4:], v[4:]]))


@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral"])
@pytest.mark.parametrize(
    ("path", "rows"),
    [
        ("self_attention.linear_qkv.weight", 32),
        ("self_attention.linear_qkv.bias", 32),
        ("mlp.linear_fc1.weight", 12),
        ("mlp.experts.local_experts.1.linear_fc1.weight", 12),
        ("mlp.experts.local_experts.1.linear_fc2.weight", 6),
        ("mlp.router.weight", 2),
        ("self_attention.q_layernorm.weight", 4),
    ],
)
def test_splitting_undoes_joining_bit_by_bit(model_type: str, path: str, rows: int) -> None:
    rule = language_naming(MODEL, model_type)(f"language.gpt.decoder.layers.0.{path}")
    assert rule is not None
    full = matrix(rows) if path.endswith("weight") else torch.arange(float(rows))
    parts = rule.split(full)
    assert len(parts) == len(rule.names)
    assert torch.equal(rule.join(parts), full)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("input_layernorm.weight", "input_layernorm.weight"),
        ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
        ("pre_mlp_layernorm.weight", "post_attention_layernorm.weight"),
        ("mlp.linear_fc1.layer_norm_weight", "post_attention_layernorm.weight"),
    ],
)
def test_a_norm_has_one_name_also_where_it_is_kept_with_its_matrix(path: str, name: str) -> None:
    rule = language_naming(MODEL, "llama")(f"gpt.decoder.layers.7.{path}")
    assert rule is not None
    assert rule.names == (f"layers.7.{name}",)


def test_what_no_checkpoint_has_has_no_rule() -> None:
    naming = language_naming(MODEL, "qwen2")
    assert naming("gpt.decoder.layers.0.self_attention.linear_qkv.lora_a") is None
    assert naming("projector.linear_fc1.weight") is None


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("model.", ""),
        ("language_model.model.", "language_model."),
        ("model.language_model.", ""),
        ("", ""),
    ],
)
def test_an_llm_is_found_inside_a_larger_model(tmp_path: Path, prefix: str, head: str) -> None:
    tower = {"vision_tower.encoder.layers.0.self_attn.q_proj.weight": matrix(3)}
    tensors = {f"{prefix}embed_tokens.weight": matrix(5), f"{head}lm_head.weight": matrix(5, 1.0)}
    save_file(tensors | attention(prefix) | tower, tmp_path / "model.safetensors")
    with Checkpoint(tmp_path) as checkpoint:
        assert torch.equal(checkpoint.read(same("embed_tokens.weight"), [5, WIDTH]), matrix(5))
        assert torch.equal(checkpoint.read(same("lm_head.weight"), [5, WIDTH]), matrix(5, 1.0))
        queries = checkpoint.read(same(f"{LAYER}q_proj.weight"), [16, WIDTH])
    assert torch.equal(queries, matrix(16))


def save_in_two_files(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    files = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({n: t for n, t in tensors.items() if files[n] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))


def test_a_checkpoint_in_several_files_is_one(tmp_path: Path) -> None:
    tensors = attention("model.")
    save_in_two_files(tmp_path, tensors)
    with Checkpoint(tmp_path) as checkpoint:
        for name, tensor in tensors.items():
            rule = same(name.removeprefix("model."))
            assert torch.equal(checkpoint.read(rule, tensor.shape), tensor)


def test_a_file_that_the_index_names_and_is_not_there_is_named(tmp_path: Path) -> None:
    save_in_two_files(tmp_path, attention("model."))
    (tmp_path / "part-1.safetensors").unlink()
    assert "part-1.safetensors" in refusal(tmp_path, f"{LAYER}k_proj.weight", [8, WIDTH])


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    save_file(attention("model."), tmp_path / "model.safetensors")
    message = refusal(tmp_path, "norm.weight", [WIDTH])
    assert f"{tmp_path} has no tensor 'norm.weight' under any known prefix" in message


def test_a_tensor_of_another_shape_is_named_with_both(tmp_path: Path) -> None:
    save_file(attention("model."), tmp_path / "model.safetensors")
    message = refusal(tmp_path, f"{LAYER}k_proj.weight", [16, WIDTH])
    assert f"model.{LAYER}k_proj.weight [8, 8] do not make the [16, 8]" in message


def test_tensors_that_cannot_be_joined_are_named(tmp_path: Path) -> None:
    tensors = attention("model.") | {f"model.{LAYER}k_proj.weight": matrix(3)}
    save_file(tensors, tmp_path / "model.safetensors")
    rule = language_naming(MODEL, "qwen3")("decoder.layers.0.self_attention.linear_qkv.weight")
    assert rule is not None
    with (
        Checkpoint(tmp_path) as checkpoint,
        pytest.raises(CheckpointError, match=r"k_proj.weight \[3, 8\]"),
    ):
        checkpoint.read(rule, [32, WIDTH])


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_broken_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"{")
    assert f"{tmp_path}: cannot be read" in refusal(tmp_path, "norm.weight", [WIDTH])


def test_a_folder_without_safetensors_says_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    message = refusal(tmp_path, "norm.weight", [WIDTH])
    assert "neither model.safetensors nor model.safetensors.index.json" in message
