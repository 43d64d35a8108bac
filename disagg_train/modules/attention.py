"""Core attention for the CPU layer spec: packed or padded samples, and context parallelism.

Under context parallelism a rank holds two chunks of every sample; it gathers the keys and
values of all cp ranks, puts them in order, and attends with its own queries.

Shapes: T rows of this cp rank, S positions of it per sample, B samples, H heads of this tp
rank, G query groups, C channels, K keys.
"""

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from disagg_train.modules.batch import Packing


class CoreAttention(nn.Module):
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
        del config, layer_number, attention_type
        assert pg_collection is not None, "process groups are always handed over"
        self.is_causal = attn_mask_type is AttnMaskType.causal
        self.cp_group = pg_collection.cp
        self.cp, self.cp_rank = pg_collection.cp.size(), pg_collection.cp.rank()

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        **_: object,
    ) -> Tensor:
        """Return the attended values.

        Args:
            q: queries, ``[T, H, C]`` where packed, else ``[S, B, H, C]``.
            k: keys, ``[T, G, C]`` or ``[S, B, G, C]``.
            v: values, likewise.
            attention_mask: none; padding at a sample's end is not seen by what comes before.
            attn_mask_type: as given to the constructor.
            attention_bias: none.
            packed_seq_params: where samples start and end; None where they are padded.

        Returns:
            ``[T, H * C]`` or ``[S, B, H * C]``.
        """
        if packed_seq_params is None:
            return self._padded(q, k, v)
        assert isinstance(packed_seq_params, Packing)
        return self._packed(q, k, v, packed_seq_params)

    def _packed(self, q_THC: Tensor, k_TGC: Tensor, v_TGC: Tensor, packing: Packing) -> Tensor:
        k_KGC = self._gather(k_TGC, packing.order_K)
        v_KGC = self._gather(v_TGC, packing.order_K)
        lengths, padded = packing.lengths, packing.padded
        queries_per_sample = q_THC.split([length // self.cp for length in padded])
        mine = packing.positions_RT[self.cp_rank].split([length // self.cp for length in padded])
        attended, start = [], 0
        for q, at, length, room in zip(queries_per_sample, mine, lengths, padded, strict=True):
            keys = slice(start, start + length)
            attended.append(self._attend(q, k_KGC[keys], v_KGC[keys], at - start))
            start += room
        return torch.cat(attended).flatten(start_dim=1)

    def _padded(self, q_SBHC: Tensor, k_SBGC: Tensor, v_SBGC: Tensor) -> Tensor:
        positions_RS = zigzag(q_SBHC.shape[0] * self.cp, self.cp, q_SBHC.device)
        order_K = positions_RS.flatten().argsort()
        k, v = self._gather(k_SBGC, order_K), self._gather(v_SBGC, order_K)
        return self._attend(q_SBHC, k, v, positions_RS[self.cp_rank]).flatten(start_dim=2)

    def _gather(self, rows: Tensor, order_K: Tensor) -> Tensor:
        """Return all cp ranks' rows in order of position; gradients go back to their owners."""
        if self.cp == 1:
            return rows
        gathered = gather_from_sequence_parallel_region(
            rows.contiguous(), tensor_parallel_output_grad=True, group=self.cp_group
        )
        return gathered[order_K]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, positions_T: Tensor) -> Tensor:
        """Attend within samples of one length; queries sit at the given positions of theirs.

        Args:
            q: ``[T, (B,) H, C]``; k and v: ``[K, (B,) G, C]``.
            k: keys in order of position.
            v: values.
            positions_T: position of each query in its sample.
        """
        mask_TK = None
        if self.is_causal and self.cp > 1:
            mask_TK = positions_T[:, None] >= torch.arange(len(k), device=k.device)
        out = scaled_dot_product_attention(
            _heads_first(q),
            _heads_first(k),
            _heads_first(v),
            attn_mask=mask_TK,
            is_causal=self.is_causal and self.cp == 1,
            enable_gqa=True,
        )
        return out.movedim(-2, 0).reshape(q.shape)


def zigzag(length: int, cp: int, device: torch.device) -> Tensor:
    """Return the positions ``[cp, length / cp]`` that each cp rank holds of one sequence."""
    positions = torch.arange(length, device=device)
    if cp == 1:
        return positions[None]
    chunks = positions.reshape(2 * cp, -1)
    return torch.cat([chunks[:cp], chunks.flip(0)[:cp]], dim=1)


def _heads_first(x: Tensor) -> Tensor:
    """Turn ``[T, (B,) H, C]`` into ``[B, H, T, C]``."""
    return x.movedim(0, -2) if x.dim() == 4 else x.movedim(0, -2)[None]
