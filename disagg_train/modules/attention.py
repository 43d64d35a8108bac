"""Core attention over packed samples for the CPU layer spec.

Shapes: T tokens of all samples, H heads of this tp rank, G query groups, C channels.
"""

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class PackedAttention(nn.Module):
    """Attention that never crosses a sample: one kernel call per packed sample."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        pg_collection: ProcessGroupCollection | None = None,
        **_: object,
    ) -> None:
        super().__init__()
        del config, layer_number, attention_type, pg_collection
        self.is_causal = attn_mask_type is AttnMaskType.causal

    def forward(
        self,
        q_THC: Tensor,
        k_TGC: Tensor,
        v_TGC: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        **_: object,
    ) -> Tensor:
        """Return the attended values, ``[T, H * C]``."""
        assert packed_seq_params is not None, "streams are packed"
        lengths = packed_seq_params.cu_seqlens_q.diff().tolist()
        parts = [tensor.split(lengths) for tensor in (q_THC, k_TGC, v_TGC)]
        attended = [self._one_sample(*qkv) for qkv in zip(*parts, strict=True)]
        return torch.cat(attended).flatten(start_dim=1)

    def _one_sample(self, q_THC: Tensor, k_TGC: Tensor, v_TGC: Tensor) -> Tensor:
        q, k, v = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (q_THC, k_TGC, v_TGC))
        out = scaled_dot_product_attention(q, k, v, is_causal=self.is_causal, enable_gqa=True)
        return out.squeeze(0).transpose(0, 1)
