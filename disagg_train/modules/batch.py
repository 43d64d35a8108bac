"""What a module computes on for one microbatch, as tensors of the rank's device."""

from collections.abc import Mapping
from dataclasses import dataclass

from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


@dataclass(frozen=True)
class EncoderBatch:
    """Images of several samples, packed into one sequence of P patches.

    Args:
        patches_PX: flattened patches, ``[P, patch_size**2 * channels]``.
        rows_P: patch row of each patch in its image.
        columns_P: patch column.
        packing: where each image starts and ends in the sequence.
    """

    patches_PX: Tensor
    rows_P: Tensor
    columns_P: Tensor
    packing: PackedSeqParams


@dataclass(frozen=True)
class LanguageBatch:
    """Fused sequences of several samples, packed into one stream of T tokens.

    Args:
        token_ids_BT: ``[1, T]``, placeholders are 0.
        labels_BT: the token that follows each position, -1 where there is no loss.
        packing: where each sample starts and ends in the stream.
        rows: per encoder, rows of this rank's part of the stream that its tokens fill.
        answer_starts: stream position of each sample's first answer token.
        answer_stops: stream position after each sample's last one.
    """

    token_ids_BT: Tensor
    labels_BT: Tensor
    packing: PackedSeqParams
    rows: Mapping[str, Tensor]
    answer_starts: tuple[int, ...] = ()
    answer_stops: tuple[int, ...] = ()
