"""Small checkpoints of transformers, and finished runs that began with them, made without ranks."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.config.models import GptConfig
from disagg_train.config.modules import GptModule, TransformerModule
from disagg_train.modules.hf.checkpoint import Checkpoint
from disagg_train.modules.hf.encoders import encoder_naming
from disagg_train.modules.hf.language import language_naming
from tests.unit.checkpoint.saved import save_weights

Weights = dict[str, NDArray[Any]]

_TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_WHISPER = {
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_source_positions": 16,
    "num_mel_bins": 8,
    "vocab_size": 64,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1),
}
LANGUAGES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**_TEXT, "rope_theta": 500_000.0}),
    "qwen2": ("Qwen2", _TEXT),
    "qwen2-tied": ("Qwen2", {**_TEXT, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {**_TEXT, "head_dim": 16}),
    "mixtral": ("Mixtral", {**_TEXT, "num_local_experts": 4, "sliding_window": None}),
    "qwen3_moe": ("Qwen3Moe", {**_TEXT, "head_dim": 16, "norm_topk_prob": True, **_MOE}),
}
_NAFLEX = {k: v for k, v in _VISION.items() if k != "image_size"} | {"num_patches": 16}
ENCODERS: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "clip": ("CLIPVisionConfig", "CLIPVisionModel", _VISION),
    "siglip": ("SiglipVisionConfig", "SiglipVisionModel", _VISION),
    "siglip2": ("Siglip2VisionConfig", "Siglip2VisionModel", _NAFLEX),
    "whisper": ("WhisperConfig", "WhisperForConditionalGeneration", _WHISPER),
}


def save_language(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> Path:
    """Save an LLM with random weights."""
    import transformers

    prefix, sizes = LANGUAGES[family]
    torch.manual_seed(1)
    model = getattr(transformers, f"{prefix}ForCausalLM")(
        getattr(transformers, f"{prefix}Config")(**sizes)
    )
    return _save(model, folder, dtype)


def save_encoder(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> Path:
    """Save an encoder with random weights, whole: with the parts that are not run here."""
    import transformers

    config, model, sizes = ENCODERS[family]
    torch.manual_seed(2)
    built = getattr(transformers, model)(getattr(transformers, config)(**sizes))
    return _save(built, folder, dtype)


def _save(model: Any, folder: Path, dtype: torch.dtype) -> Path:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.to(dtype).save_pretrained(folder)
    return folder


def finished_run(
    folder: Path,
    vision: Mapping[str, Any] | None,
    language: Mapping[str, Any],
    change: Callable[[Weights], None] = lambda weights: None,
    data: Mapping[str, Any] | None = None,
    **train: Any,
) -> Path:
    """Save the checkpoint of a run that trained nothing, but for what ``change`` does.

    Args:
        folder: the run's.
        vision: fields of its encoder, if it is to have one.
        language: fields of its LLM.
        change: of the weights by full name, in place.
        data: the job's ``data`` part.
        train: more of the job's ``train`` part.
    """
    modules = {"language": {"kind": "gpt", "group": "all", **language}}
    if vision is not None:
        modules["vision"] = {"group": "all", **vision}
    job = load_job(
        {
            "name": "export",
            "groups": {"all": {"ranks": 1}},
            "modules": modules,
            "data": data or {},
            "train": {"steps": 1, "global_batch": 1, "optimizer": {"lr": 1e-3}, **train},
        }
    )
    weights = dict(_weights(job))
    change(weights)
    save_weights(str(folder / "checkpoints"), weights, 5, job.model_dump(mode="json"))
    return folder


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a folder's model, whatever files they are in."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found |= load_file(file)
    return found


def _weights(job: JobConfig) -> Iterator[tuple[str, NDArray[Any]]]:
    generator = np.random.default_rng(3)
    for name, module in job.modules.items():
        if isinstance(module, GptModule):
            shapes = dict(_language_shapes(module.model))
            naming = language_naming(module.model, _model_type(module))
        else:
            assert isinstance(module, TransformerModule)
            shapes = dict(_encoder_shapes(module, job.language.model.hidden_size))
            naming = encoder_naming(module)
        for path, shape in shapes.items():
            rule = naming(path)
            if module.pretrained is None or rule is None:
                drawn = generator.normal(size=[n or 8 for n in shape]).astype(np.float32)
                yield f"{name}.{path}", drawn
                continue
            with Checkpoint(Path(module.pretrained)) as checkpoint:
                if isinstance(module, GptModule):
                    checkpoint.find("norm.weight")  # decides the prefix, as the head's must not
                stored = [checkpoint.find(each) for each in rule.names]
                parts = [checkpoint.stored(each) for each in stored if each is not None]
            yield f"{name}.{path}", _computed(rule.join(parts), job).numpy()


def _computed(weight: torch.Tensor, job: JobConfig) -> torch.Tensor:
    return weight.bfloat16().float() if job.train.precision == "bf16" else weight.float()


def _model_type(module: GptModule) -> str:
    model = module.model
    return "mixtral" if model.num_experts and not model.qk_norm else "qwen3_moe"


def _language_shapes(model: GptConfig) -> Iterator[tuple[str, list[int]]]:
    """Yield the paths and shapes of an LLM's weights, as Megatron has them."""
    width, head = model.hidden_size, model.head_width
    yield "gpt.embedding.word_embeddings.weight", [model.vocab_size, width]
    qkv = (model.num_attention_heads + 2 * model.query_groups) * head
    for number in range(model.num_layers):
        layer = f"gpt.decoder.layers.{number}"
        yield f"{layer}.input_layernorm.weight", [width]
        yield f"{layer}.self_attention.linear_qkv.weight", [qkv, width]
        if model.qkv_bias:
            yield f"{layer}.self_attention.linear_qkv.bias", [qkv]
        if model.qk_norm:
            yield f"{layer}.self_attention.q_layernorm.weight", [head]
            yield f"{layer}.self_attention.k_layernorm.weight", [head]
        yield (
            f"{layer}.self_attention.linear_proj.weight",
            [width, model.num_attention_heads * head],
        )
        yield f"{layer}.pre_mlp_layernorm.weight", [width]
        if model.num_experts:
            yield f"{layer}.mlp.router.weight", [model.num_experts, width]
        experts = [f".experts.local_experts.{n}" for n in range(model.num_experts or 0)]
        ffn = model.expert_ffn_size if model.num_experts else model.ffn_size
        for expert in experts or [""]:
            yield f"{layer}.mlp{expert}.linear_fc1.weight", [2 * ffn, width]
            yield f"{layer}.mlp{expert}.linear_fc2.weight", [width, ffn]
    yield "gpt.decoder.final_layernorm.weight", [width]
    if not model.tie_embeddings:
        yield "gpt.output_layer.weight", [model.vocab_size, width]


def _encoder_shapes(module: TransformerModule, out: int) -> Iterator[tuple[str, list[int]]]:
    """Yield the paths and shapes of an encoder's weights and its projector's."""
    model, width = module.model, module.model.hidden_size
    kind = str(getattr(module, "kind", ""))
    if kind == "whisper":
        yield "embedding.first.weight", [width, 3 * 8]
        yield "embedding.second.weight", [width, 3 * width]
        yield "embedding.position.weight", [16, width]
        yield from ((f"embedding.{part}.bias", [width]) for part in ("first", "second"))
    else:
        yield "embedding.patch.weight", [width, model.values_per_token]
        yield "embedding.position.weight", [16 + (kind == "clip"), width]
    if kind in ("siglip", "siglip2"):
        yield "embedding.patch.bias", [width]
    if kind == "clip":
        yield "embedding.class_token.weight", [1, width]
        yield from ((f"embedding.norm.{each}", [width]) for each in ("weight", "bias"))
    linears = {
        "self_attention.linear_qkv": [3 * width, width],
        "self_attention.linear_proj": [width, width],
        "mlp.linear_fc1": [model.ffn_size, width],
        "mlp.linear_fc2": [width, model.ffn_size],
    }
    for number in range(model.num_layers_run):
        for norm in ("input_layernorm", "pre_mlp_layernorm"):
            linears[norm] = [width]
        for part, shape in linears.items():
            yield f"encoder.layers.{number}.{part}.weight", shape
            yield f"encoder.layers.{number}.{part}.bias", shape[:1]
    if model.norms_output:
        yield from ((f"encoder.final_layernorm.{each}", [width]) for each in ("weight", "bias"))
    joined = width * module.projector.merge
    if module.projector.kind == "linear":
        yield "projector.weight", [out, joined]
        yield "projector.bias", [out]
        return
    for part, columns in (("linear_fc1", joined), ("linear_fc2", out)):
        yield f"projector.encoder.{part}.weight", [out, columns]
        yield f"projector.encoder.{part}.bias", [out]
