"""What a module computes on for one microbatch, as tensors of the rank's device."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

PREVIOUS_STAGE = "previous stage"
"""Name under which a pipeline stage finds the rows of the stage before it."""


@dataclass
class Packing(PackedSeqParams):
    """Where each sequence starts and ends in a packed stream, as Megatron wants it and plainly.

    Args:
        lengths: tokens of each sequence.
        padded: positions that each takes, over all cp ranks.
        positions_RT: position in the full stream of every row of each cp rank, ``[cp, T]``.
        order_K: of all cp ranks' rows, one rank after the other, the one at each position.
    """

    lengths: tuple[int, ...] = ()
    padded: tuple[int, ...] = ()
    positions_RT: Tensor = None
    order_K: Tensor = None


@dataclass(frozen=True)
class EncoderBatch:
    """Inputs (images, recordings) of several samples, packed into one sequence.

    This cp rank holds P tokens of it, of X values each.

    Args:
        packing: where each input starts and ends in the sequence.
        values_PX: flattened patches, or windows of frames; these and their places are empty on
            pipeline stages that embed nothing.
        rows_P: patch row of each token in its image, or its number in its recording; -1 of a
            class token, which comes last in its image.
        columns_P: patch column.
        inputs_P: which input each token is of.
        grids: rows and columns of each input.
    """

    packing: Packing
    values_PX: Tensor
    rows_P: Tensor
    columns_P: Tensor
    inputs_P: Tensor | None = None
    grids: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class LanguageBatch:
    """Fused sequences of several samples; this cp rank holds S positions of B sequences.

    Packed, B is 1 and S counts the rows of the whole stream.

    Args:
        token_ids_BS: tokens; placeholders and padding are 0.
        labels_BS: the token that follows each position, -1 where there is no loss.
        packing: where each sample starts and ends in the stream; None where they are padded.
        rows: per encoder, rows of this rank's part of the stream that its tokens fill, with
            sequences one after the other.
        positions_RT: position in the full stream of every row of each cp rank.
        answers: full-stream positions of each sample's answer, first and past the last.
    """

    token_ids_BS: Tensor
    labels_BS: Tensor
    packing: Packing | None
    rows: Mapping[str, Tensor]
    positions_RT: Tensor
    answers: tuple[tuple[int, int], ...] = ()

    @property
    def num_sequences(self) -> int:
        """B."""
        return self.token_ids_BS.shape[0]

    def with_tokens(self, full_T: Tensor, cp_rank: int) -> "LanguageBatch":
        """Return the batch with this cp rank's share of other tokens.

        Args:
            full_T: tokens of the full stream, sequences one after the other.
            cp_rank: this rank's.
        """
        mine_BS = full_T[self.positions_RT[cp_rank]].view_as(self.token_ids_BS)
        return LanguageBatch(
            mine_BS, self.labels_BS, self.packing, self.rows, self.positions_RT, self.answers
        )


def cumulative(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the bounds of sequences laid one after the other, as Megatron's kernels take them."""
    bounds = torch.tensor([0, *lengths], dtype=torch.int32)
    return bounds.cumsum(0, dtype=torch.int32).to(device)
