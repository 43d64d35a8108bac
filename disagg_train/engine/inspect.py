"""Full weights and gradients by name, for parity checks."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from numpy.typing import NDArray
from torch import Tensor, nn

from disagg_train.engine.stage import Stage
from disagg_train.modules.weights import (
    gather_full,
    is_expert_parallel,
    is_tied_copy,
    named_weights,
)


def full_weights(stages: Mapping[str, Stage]) -> dict[str, NDArray[Any]]:
    """Return every weight of the stages in fp32, each on the first rank that holds it.

    Where the model computes in bf16 or fp16, trained weights are the optimizer's fp32 copies;
    frozen ones have no others than the model's.
    """
    found = {}
    for stage in stages.values():
        for full_name, parameter in named_weights(stage.module, stage.unwrapped):
            full = gather_full(_master(stage, parameter), parameter, stage.groups.tp)
            if _is_first_holder(stage, parameter):
                found[full_name] = full.float().cpu().numpy()
    return found


def _master(stage: Stage, parameter: nn.Parameter) -> Tensor:
    if stage.optimizer is None or not parameter.requires_grad:
        return parameter
    return stage.optimizer.master(parameter)


def full_gradients(stages: Mapping[str, Stage]) -> dict[str, NDArray[Any]]:
    """Return every trained weight's gradient, each on the first rank that holds the weight.

    The distributed optimizer leaves each replica with one shard of the summed gradients;
    the shards are gathered first.
    """
    found = {}
    for stage in stages.values():
        if not isinstance(stage.model, DistributedDataParallel):
            continue
        _gather_shards(stage.model)
        for full_name, parameter in named_weights(stage.module, stage.unwrapped):
            if parameter.requires_grad:
                full = gather_full(_main_grad(parameter), parameter, stage.groups.tp)
                if _is_first_holder(stage, parameter):
                    found[full_name] = full.cpu().numpy()
    return found


def _gather_shards(model: DistributedDataParallel) -> None:
    for buffer in [*model.buffers, *model.expert_parallel_buffers]:
        group = buffer.data_parallel_group
        for bucket in buffer.buckets:
            shards = bucket.grad_data.chunk(group.size())
            mine = shards[group.rank()].clone()
            parts = [torch.empty_like(mine) for _ in shards]
            dist.all_gather(parts, mine, group=group)
            bucket.grad_data.copy_(torch.cat(parts))


def _main_grad(parameter: nn.Parameter) -> Tensor:
    grad: Tensor = parameter.main_grad
    return grad


def _is_first_holder(stage: Stage, parameter: nn.Parameter) -> bool:
    """Whether this is the first of the ranks that hold the weight or a part of it."""
    if is_tied_copy(parameter):
        return False
    groups = stage.groups
    replicas = groups.expt_dp if is_expert_parallel(parameter) else groups.dp_cp
    return groups.tp.rank() == 0 and replicas.rank() == 0
