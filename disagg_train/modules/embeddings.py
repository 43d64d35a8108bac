"""What is before an encoder's first layer: values of tokens and their places -> rows.

Every token's row is made of that token alone, so packing and context parallelism cut inputs
anywhere. All tp ranks embed the same tokens.

Shapes: P tokens of this cp rank, X values each, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate

from disagg_train.config.models import (
    ClipConfig,
    EncoderConfig,
    Siglip2Config,
    SiglipConfig,
    VitConfig,
    WhisperConfig,
)
from disagg_train.modules.batch import EncoderBatch


class PatchEmbedding(nn.Module):
    """The plain vision transformer's: a position for every patch row and column."""

    def __init__(self, model: VitConfig) -> None:
        super().__init__()
        self.patch = nn.Linear(model.values_per_token, model.hidden_size)
        self.row = nn.Embedding(model.max_patches_per_side, model.hidden_size)
        self.column = nn.Embedding(model.max_patches_per_side, model.hidden_size)

    def forward(self, batch: EncoderBatch) -> Tensor:
        """Return ``[P, D]``."""
        x_PD: Tensor = self.patch(_values(batch, self.patch))
        return x_PD + self.row(batch.rows_P) + self.column(batch.columns_P)


class ClipEmbedding(nn.Module):
    """CLIP's: a position for every patch and for the class token; all rows are then normed."""

    def __init__(self, model: ClipConfig) -> None:
        super().__init__()
        self.side = model.patches_per_side
        self.patch = nn.Linear(model.values_per_token, model.hidden_size, bias=False)
        self.class_token = nn.Embedding(1, model.hidden_size)
        self.position = nn.Embedding(1 + self.side**2, model.hidden_size)
        self.norm = nn.LayerNorm(model.hidden_size, model.norm_eps)

    def forward(self, batch: EncoderBatch) -> Tensor:
        """Return ``[P, D]``."""
        is_class_P = batch.rows_P < 0
        patches_P = 1 + batch.rows_P * self.side + batch.columns_P
        x_PD = (
            self.patch(_values(batch, self.patch)) + is_class_P[:, None] * self.class_token.weight
        )
        rows_PD: Tensor = self.norm(x_PD + self.position(patches_P.masked_fill(is_class_P, 0)))
        return rows_PD


class SiglipEmbedding(nn.Module):
    """SigLIP's: a position for every patch of an image of one size."""

    def __init__(self, model: SiglipConfig) -> None:
        super().__init__()
        self.side = model.patches_per_side
        self.patch = nn.Linear(model.values_per_token, model.hidden_size)
        self.position = nn.Embedding(self.side**2, model.hidden_size)

    def forward(self, batch: EncoderBatch) -> Tensor:
        """Return ``[P, D]``."""
        x_PD: Tensor = self.patch(_values(batch, self.patch))
        return x_PD + self.position(batch.rows_P * self.side + batch.columns_P)


class Siglip2Embedding(nn.Module):
    """SigLIP 2's: a square of positions, stretched to the grid of every image."""

    def __init__(self, model: Siglip2Config) -> None:
        super().__init__()
        self.side = model.positions_per_side
        self.patch = nn.Linear(model.values_per_token, model.hidden_size)
        self.position = nn.Embedding(self.side**2, model.hidden_size)

    def forward(self, batch: EncoderBatch) -> Tensor:
        """Return ``[P, D]``."""
        x_PD: Tensor = self.patch(_values(batch, self.patch))
        tables_GD, first_of, columns_of = self._stretched(batch.grids)
        positions_P = first_of[batch.inputs_P] + batch.rows_P * columns_of[batch.inputs_P]
        return x_PD + tables_GD[positions_P + batch.columns_P]

    def _stretched(self, grids: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Return a table of positions for every grid, one after the other; each once.

        Where an image's table starts, and how many columns it has, come with it.
        """
        square = self.position.weight.view(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        tables, first_of, end = [], {}, 0
        for rows, columns in dict.fromkeys(grids):
            table = interpolate(  # fp32: on CPUs it has no other type
                square.float(), size=(rows, columns), mode="bilinear", antialias=True
            )
            tables.append(table.flatten(2)[0].T)
            first_of[rows, columns], end = end, end + rows * columns
        firsts = torch.tensor([first_of[grid] for grid in grids], device=square.device)
        widths = torch.tensor([columns for _, columns in grids], device=square.device)
        return torch.cat(tables).to(square.dtype), firsts, widths


class FrameEmbedding(nn.Module):
    """Whisper's: two convolutions of three frames each, the second on every second one.

    Token t sees the outputs 2t - 1, 2t and 2t + 1 of the first, so the frames 2t - 2 to 2t + 2,
    which are its values. The two are linears over what they see. The table of positions is
    fixed: sines and cosines.
    """

    def __init__(self, model: WhisperConfig) -> None:
        super().__init__()
        self.num_values, width = model.num_mel_bins, model.hidden_size
        self.first = nn.Linear(3 * self.num_values, width)
        self.second = nn.Linear(3 * width, width)
        self.position = nn.Embedding.from_pretrained(_sines(model.max_tokens, width), freeze=True)

    def forward(self, batch: EncoderBatch) -> Tensor:
        """Return ``[P, D]``."""
        frames_P5M = _values(batch, self.first).unflatten(1, (5, self.num_values))
        windows_P33M = torch.stack([frames_P5M[:, at : at + 3].flatten(1) for at in range(3)], 1)
        seen_P3D = gelu(self.first(windows_P33M))
        before_the_start_P = batch.rows_P == 0
        is_padding_P31 = before_the_start_P[:, None, None] & _FIRST_OF_3.to(seen_P3D.device)
        seen_P3D = seen_P3D.masked_fill(is_padding_P31, 0.0)
        return gelu(self.second(seen_P3D.flatten(1))) + self.position(batch.rows_P)


_FIRST_OF_3 = torch.tensor([True, False, False]).view(1, 3, 1)


def _sines(num_positions: int, width: int) -> Tensor:
    """Return Whisper's table of positions ``[num_positions, width]``."""
    half = width // 2
    slower = torch.exp(-torch.arange(half) * (torch.tensor(10_000.0).log() / max(half - 1, 1)))
    angles = torch.arange(num_positions)[:, None] * slower
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _values(batch: EncoderBatch, of: nn.Linear) -> Tensor:
    return batch.values_PX.to(of.weight.dtype)


def make_embedding(model: EncoderConfig) -> nn.Module:
    """Return a family's embedding, which takes an ``EncoderBatch``."""
    match model:
        case VitConfig():
            return PatchEmbedding(model)
        case ClipConfig():
            return ClipEmbedding(model)
        case SiglipConfig():
            return SiglipEmbedding(model)
        case Siglip2Config():
            return Siglip2Embedding(model)
        case WhisperConfig():
            return FrameEmbedding(model)
    raise AssertionError(f"no embedding for {type(model).__name__}")
