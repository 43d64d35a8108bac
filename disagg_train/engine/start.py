"""Weights of an earlier run, cut into this rank's shards, over the ones a module was built with."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from disagg_train.checkpoint.reader import CheckpointReader
from disagg_train.engine.earlier import EarlierWeights
from disagg_train.errors import CheckpointError
from disagg_train.modules.lora import LORA_A
from disagg_train.modules.weights import full_shape, named_weights, shard


def start_from(run: str, module: str, model: nn.Module, group: dist.ProcessGroup) -> None:
    """Copy the weights of an earlier run into a local model, as ``take_over`` does.

    Args:
        run: its output folder.
        module: name of the module.
        model: its local model.
        group: the module's tp group.

    Raises:
        CheckpointError: the run has no finished checkpoint, or its weights do not fit.
    """
    with CheckpointReader(Path(run).expanduser()) as checkpoint:
        take_over(module, model, EarlierWeights(checkpoint), group)


def take_over(
    module: str, model: nn.Module, earlier: EarlierWeights, group: dist.ProcessGroup
) -> None:
    """Copy the weights that an earlier run holds under the same full names into a local model.

    One full tensor is held at a time. What the run lacks keeps its value, as in a module that it
    did not have. Its low-rank additions are merged where the model is to have none.

    Args:
        module: name of the module.
        model: its local model; the layout need not be that of the earlier run.
        earlier: of the earlier run.
        group: the module's tp group.

    Raises:
        CheckpointError: a shape differs, or the earlier run had the module but none of the
            weights that this rank holds.
    """
    mine = dict(named_weights(module, model))
    found = {name: weight for name, weight in mine.items() if name in earlier.checkpoint}
    folder = earlier.checkpoint.folder
    if not found and any(name.startswith(f"{module}.") for name in earlier.names):
        raise CheckpointError(
            f"start_from: {folder} has a module {module!r}, but none of its weights is one of "
            f"this job's {module!r}; is it another kind of model? rename the module to start anew"
        )
    with torch.no_grad():
        for name, parameter in found.items():
            keeps_addition = f"{name.removesuffix('.weight')}.{LORA_A}" in mine
            full = earlier.read(name) if keeps_addition else earlier.read_merged(name)
            shape = full_shape(parameter, group.size())
            if list(full.shape) != shape:
                raise CheckpointError(
                    f"start_from: {name} is {list(full.shape)} in {folder}, but {shape} in this "
                    f"job; give modules.{module} the sizes of that run"
                )
            parameter.copy_(shard(full, parameter, group.rank(), group.size()))
