"""Modules that are to be encoders of one's own, plain and mistaken."""

from typing import Any

import torch
from torch import Tensor, nn


class Plain(nn.Module):
    """A token per pixel column; one matrix and some dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 6
        self.matrix, self.dropout = nn.Linear(4, self.width), nn.Dropout(0.5)

    @staticmethod
    def count(size: tuple[int, ...], **_: Any) -> int:
        return size[1]

    def forward(self, samples: list[Tensor]) -> Tensor:
        columns = torch.cat([strip.squeeze(2).T for strip in samples])
        return self.dropout(self.matrix(columns))


class DropsAColumn(Plain):
    """Makes a token less than it counts of images that are wider than 3."""

    def forward(self, samples: list[Tensor]) -> Tensor:
        return super().forward([strip[:, : max(3, strip.shape[1] - 1)] for strip in samples])


class SaysAnotherWidth(Plain):
    """Returns fewer values than it says."""

    def forward(self, samples: list[Tensor]) -> Tensor:
        return super().forward(samples)[:, 1:]


class ReturnsAList(Plain):
    """Returns the tokens of each image apart."""

    def forward(self, samples: list[Tensor]) -> Any:
        return [super(ReturnsAList, self).forward([strip]) for strip in samples]


class HasNoWidth(Plain):
    """Does not say how wide its tokens are."""

    def __init__(self) -> None:
        super().__init__()
        del self.width


class MixesSamples(Plain):
    """Has a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(self.width)
