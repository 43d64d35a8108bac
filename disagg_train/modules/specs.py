"""Megatron configs and layer specs: Transformer Engine on GPUs, our own parts on CPUs."""

from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from torch import Tensor
from torch.nn.functional import gelu, silu

from disagg_train.config.job import Precision
from disagg_train.config.models import EncoderConfig, GptConfig
from disagg_train.config.modules import GptModule, ParallelConfig, Recompute, TransformerModule
from disagg_train.modules.attention import CoreAttention
from disagg_train.modules.norm import Norm

DTYPES: Mapping[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

_RECOMPUTE: Mapping[Recompute, Mapping[str, Any]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
    "full": {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    },
}


def megatron_config(
    model: GptConfig | EncoderConfig,
    parallel: ParallelConfig,
    recompute: Recompute = "none",
    split_backward: bool = False,
    precision: Precision = "fp32",
) -> TransformerConfig:
    """Return Megatron's config of a module.

    The LLM has RMSNorm, SwiGLU and no biases, an encoder LayerNorm, GELU and biases.
    Gradients are sums over tokens (``calculate_per_token_loss``), weights are drawn by
    name elsewhere (``perform_initialization`` off), and nothing is dropped out.

    Megatron accepts ``delay_wgrad_compute`` only for its own overlap of experts; Transformer
    Engine's linears read it when they are built, so it is set behind the check's back. Linears
    with biases do not wait: not every version of the engine finds a late bias's gradient.
    """
    is_gpt = isinstance(model, GptConfig)
    dtype = DTYPES[precision]
    config = TransformerConfig(
        num_layers=model.num_layers_run,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        ffn_hidden_size=model.ffn_size,
        normalization="RMSNorm" if is_gpt else "LayerNorm",
        layernorm_epsilon=model.norm_eps,
        gated_linear_unit=is_gpt,
        add_bias_linear=not is_gpt,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        gradient_accumulation_fusion=False,
        perform_initialization=False,
        calculate_per_token_loss=True,
        tensor_model_parallel_size=parallel.tp,
        sequence_parallel=parallel.sequence_parallel,
        context_parallel_size=parallel.cp,
        pipeline_model_parallel_size=parallel.pp,
        virtual_pipeline_model_parallel_size=parallel.vpp if parallel.vpp > 1 else None,
        pipeline_dtype=dtype,
        params_dtype=dtype,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        **_family(model),
        **_experts(model, parallel),
        **_RECOMPUTE[recompute],
    )
    late_bias = uses_transformer_engine() and isinstance(model, GptConfig) and model.qkv_bias
    config.delay_wgrad_compute = split_backward and is_gpt and not late_bias
    return config


def _family(model: GptConfig | EncoderConfig) -> dict[str, Any]:
    """Return what Megatron is told about attention and the feed-forward layers of a family."""
    if isinstance(model, EncoderConfig):
        return {"activation_func": _ACTIVATIONS[model.activation]}
    return {
        "activation_func": silu,
        "num_query_groups": model.query_groups,
        "kv_channels": model.head_width,
        "add_qkv_bias": model.qkv_bias,
        "qk_layernorm": model.qk_norm,
    }


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": partial(gelu, approximate="tanh"),
    "quick_gelu": _quick_gelu,
}


def _experts(model: GptConfig | EncoderConfig, parallel: ParallelConfig) -> dict[str, Any]:
    """Return what Megatron is told about experts: routed as in Mixtral, none dropped.

    Gloo has no uneven all-to-all, so CPUs gather all tokens of the tp * ep ranks instead; these
    must then have equally many.
    """
    if not isinstance(model, GptConfig) or model.num_experts is None:
        return {}
    return {
        "num_moe_experts": model.num_experts,
        "moe_router_topk": model.experts_per_token,
        "moe_ffn_hidden_size": model.expert_ffn_size,
        "moe_router_pre_softmax": False,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
        "moe_token_dispatcher_type": "alltoall" if torch.cuda.is_available() else "allgather",
        "moe_grouped_gemm": False,
        "expert_model_parallel_size": parallel.ep,
        "expert_tensor_parallel_size": parallel.tp,
    }


def uses_transformer_engine() -> bool:
    """Whether layers are Transformer Engine's: on GPUs, where it is installed."""
    return torch.cuda.is_available() and find_spec("transformer_engine") is not None


def layer_specs(
    module: GptModule | TransformerModule, config: TransformerConfig
) -> TransformerBlockSubmodules:
    """Return the specs of a stage's layers, equally many on each, and of the last norm.

    An encoder must say ``no_mask``: without a mask Megatron's default is causal, silently.
    """
    engine = uses_transformer_engine()
    spec = _engine_layer(config, module.lora is not None) if engine else _plain_layer(config)
    if isinstance(module, TransformerModule):
        spec.submodules.self_attention.params = {"attn_mask_type": AttnMaskType.no_mask}
    last_norm = _te_norm() if engine else Norm
    parallel = module.parallel
    num_layers = config.num_layers // (parallel.pp * parallel.vpp)
    return TransformerBlockSubmodules([spec] * num_layers, layer_norm=last_norm)


def _plain_layer(
    config: TransformerConfig, norm: type = Norm, core_attention: type = CoreAttention
) -> ModuleSpec:
    spec = get_gpt_layer_local_spec(
        num_experts=config.num_moe_experts,
        moe_grouped_gemm=config.moe_grouped_gemm,
        normalization=config.normalization,
        qk_layernorm=config.qk_layernorm,
    )
    spec.submodules.input_layernorm = norm
    spec.submodules.pre_mlp_layernorm = norm
    attention = spec.submodules.self_attention.submodules
    attention.core_attention = core_attention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = norm
    return spec


def _engine_layer(config: TransformerConfig, has_lora: bool) -> ModuleSpec:
    """Return a layer of Transformer Engine's parts.

    Low-rank additions need what goes into a matrix, which its linears keep to themselves where
    a norm is a part of them; Megatron's own then stand in for these.
    """
    if has_lora:
        from megatron.core.extensions.transformer_engine import TEDotProductAttention

        return _plain_layer(config, _te_norm(), TEDotProductAttention)
    return get_gpt_layer_with_transformer_engine_spec(
        num_experts=config.num_moe_experts,
        moe_grouped_gemm=config.moe_grouped_gemm,
        qk_layernorm=config.qk_layernorm,
    )


def _te_norm() -> type:
    from megatron.core.extensions.transformer_engine import TENorm

    return TENorm


def mlp_submodules() -> MLPSubmodules:
    """Return the linears of a projector; plain Megatron ones serve CPUs and GPUs alike."""
    return MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
