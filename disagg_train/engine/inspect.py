"""Full weights and gradients by name, for parity checks and final checkpoints."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from numpy.typing import NDArray
from torch import Tensor, nn

from disagg_train.engine.stage import Stage
from disagg_train.modules.weights import gather_full, named_weights


def full_weights(stages: Mapping[str, Stage]) -> dict[str, NDArray[Any]]:
    """Return every weight of the stages on each module's first rank, nothing elsewhere."""
    found = {}
    for name, stage in stages.items():
        for full_name, parameter in named_weights(name, stage.unwrapped):
            full = gather_full(parameter, parameter, stage.groups.tp)
            if _is_first(stage):
                found[full_name] = full.cpu().numpy()
    return found


def full_gradients(stages: Mapping[str, Stage]) -> dict[str, NDArray[Any]]:
    """Return every trained weight's gradient on each module's first rank.

    The distributed optimizer leaves each dp rank with one shard of the summed gradients;
    the shards are gathered first.
    """
    found = {}
    for name, stage in stages.items():
        if not isinstance(stage.model, DistributedDataParallel):
            continue
        _gather_shards(stage.model, stage.groups.dp_cp)
        for full_name, parameter in named_weights(name, stage.unwrapped):
            if parameter.requires_grad:
                full = gather_full(_main_grad(parameter), parameter, stage.groups.tp)
                if _is_first(stage):
                    found[full_name] = full.cpu().numpy()
    return found


def _gather_shards(model: DistributedDataParallel, group: dist.ProcessGroup) -> None:
    for buffer in model.buffers:
        for bucket in buffer.buckets:
            shards = bucket.grad_data.chunk(group.size())
            mine = shards[group.rank()].clone()
            parts = [torch.empty_like(mine) for _ in shards]
            dist.all_gather(parts, mine, group=group)
            bucket.grad_data.copy_(torch.cat(parts))


def _main_grad(parameter: nn.Parameter) -> Tensor:
    grad: Tensor = parameter.main_grad
    return grad


def _is_first(stage: Stage) -> bool:
    return dist.get_rank(stage.groups.intra_dist_opt) == 0
