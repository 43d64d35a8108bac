"""An encoder of one's own: convolutions over strips of digits, a plain torch module."""

from typing import Any

import torch
from torch import Tensor, nn

HEIGHT = 8


class StripEncoder(nn.Module):
    """Strips 8 pixels high -> a token per few columns.

    Args:
        width: values of a token.
        columns: pixel columns of a token.
    """

    def __init__(self, width: int = 64, columns: int = 2) -> None:
        super().__init__()
        self.width = width
        self.pixels = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 3, padding=1)
        )
        self.columns = nn.Conv2d(width, width, (HEIGHT, columns), stride=columns)
        self.norm = nn.LayerNorm(width)

    @staticmethod
    def count(size: tuple[int, ...], columns: int = 2, **_: Any) -> int:
        """Return the tokens of a strip of (height, width) pixels."""
        height, width = size
        if height != HEIGHT or width % columns:
            raise ValueError(f"strips are {HEIGHT} pixels high and multiples of {columns} wide")
        return width // columns

    def forward(self, samples: list[Tensor]) -> Tensor:
        """Return the tokens ``[T, width]`` of all strips ``[height, width, 1]``."""
        return torch.cat([self.norm(self._tokens(strip)) for strip in samples])

    def _tokens(self, strip_HWC: Tensor) -> Tensor:
        x_CHW = nn.functional.gelu(self.pixels(strip_HWC.permute(2, 0, 1)))
        x_D1T: Tensor = self.columns(x_CHW)
        return x_D1T.squeeze(1).transpose(0, 1)
