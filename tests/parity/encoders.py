"""Encoders of one's own that jobs name by their import paths: cut in every way, or mistaken."""

from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
    set_tensor_model_parallel_attributes,
)
from torch import Tensor, nn

HEIGHT, COLUMNS = 8, 2


class SplitEncoder(nn.Module):
    """Columns of strips through layers that are cut over tp, dealt over pp, and take cp's tokens.

    Args:
        groups: the module's process groups.
        width: values of a token.
        num_layers: of all stages together.
    """

    parallel = ("tp", "cp", "pp")

    def __init__(
        self, groups: ProcessGroupCollection, width: int = 24, num_layers: int = 2
    ) -> None:
        super().__init__()
        self.width = width
        stage, per_stage = groups.pp.rank(), num_layers // groups.pp.size()
        self.embedding = nn.Linear(HEIGHT * COLUMNS, width) if stage == 0 else None
        numbers = range(stage * per_stage, (stage + 1) * per_stage)
        self.layers = nn.ModuleDict({str(n): SplitLayer(width, groups.tp) for n in numbers})

    @staticmethod
    def count(size: tuple[int, ...], **_: Any) -> int:
        return size[1] // COLUMNS

    def forward(self, samples: list[Tensor], tokens: Tensor) -> Tensor:
        if self.embedding is None:
            x_PD = torch.cat(samples)
        else:
            columns = [strip.squeeze(2).T.reshape(-1, HEIGHT * COLUMNS) for strip in samples]
            x_PD = self.embedding(torch.cat(columns)[tokens])
        for layer in self.layers.values():
            x_PD = layer(x_PD)
        return x_PD


class ForgetfulEncoder(nn.Module):
    """Columns of strips through a matrix, half of whose output random numbers take away.

    Args:
        width: values of a token.
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.width = width
        self.embedding, self.dropout = nn.Linear(HEIGHT * COLUMNS, width), nn.Dropout(0.5)

    @staticmethod
    def count(size: tuple[int, ...], **_: Any) -> int:
        return size[1] // COLUMNS

    def forward(self, samples: list[Tensor]) -> Tensor:
        columns = [strip.squeeze(2).T.reshape(-1, HEIGHT * COLUMNS) for strip in samples]
        return self.dropout(self.embedding(torch.cat(columns)))


class SplitLayer(nn.Module):
    """Two matrices with a GELU between them; each tp rank has a part of both."""

    def __init__(self, width: int, tp: Any) -> None:
        super().__init__()
        self.tp, part = tp, 4 * width // tp.size()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, part), nn.Linear(part, width, bias=False)
        for weight, dim in ((self.up.weight, 0), (self.up.bias, 0), (self.down.weight, 1)):
            set_tensor_model_parallel_attributes(weight, True, dim, 1)

    def forward(self, x_PD: Tensor) -> Tensor:
        hidden = self.up(copy_to_tensor_model_parallel_region(self.norm(x_PD), self.tp))
        out_PD = self.down(nn.functional.gelu(hidden))
        return x_PD + reduce_from_tensor_model_parallel_region(out_PD, self.tp)
