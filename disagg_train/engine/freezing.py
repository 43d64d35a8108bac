"""Which weights of a module stay as they are, by name.

Names are those of a checkpoint without the module's: ``encoder.layers.0.mlp.linear_fc1.weight``.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.transformer_block import TransformerBlock
from torch import nn

from disagg_train.config.modules import EncoderModule, ModuleConfig
from disagg_train.errors import ConfigError
from disagg_train.modules.lora import is_addition
from disagg_train.modules.weights import named_weights


def is_frozen(module: ModuleConfig, path: str) -> bool:
    """Return whether a weight is frozen.

    Args:
        module: its module.
        path: its name without the module's.
    """
    if any(fnmatchcase(path, pattern) for pattern in patterns_of(module)):
        return True
    if isinstance(module, EncoderModule) and path.startswith("projector."):
        return module.freezes_projector
    return module.freeze is True if module.lora is None else not is_addition(path)


def patterns_of(module: ModuleConfig) -> tuple[str, ...]:
    """Return the patterns of names to freeze."""
    return module.freeze if isinstance(module.freeze, tuple) else ()


def freeze(name: str, module: ModuleConfig, model: nn.Module) -> None:
    """Freeze weights of a local model, as the module says; what it fixes itself stays fixed."""
    for full_name, parameter in named_weights(name, model):
        path = full_name.removeprefix(f"{name}.")
        parameter.requires_grad_(parameter.requires_grad and not is_frozen(module, path))


def check_patterns(name: str, module: ModuleConfig, models: Sequence[nn.Module]) -> None:
    """Refuse a pattern that matches no weight on any rank of the actor group.

    All ranks of the group call this for the same module; each knows its own stages only.

    Args:
        name: of the module.
        module: its part of the job.
        models: this rank's stages of it.

    Raises:
        ConfigError: naming the pattern and the names that are nearest to it.
    """
    if not patterns_of(module):
        return
    mine = [full.removeprefix(f"{name}.") for m in models for full, _ in named_weights(name, m)]
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, mine)
    paths = sorted({path for theirs in everyones for path in theirs})
    for pattern in patterns_of(module):
        if not any(fnmatchcase(path, pattern) for path in paths):
            nearest = get_close_matches(pattern, paths, n=3, cutoff=0.0)
            raise ConfigError(
                f"modules.{name}.freeze: {pattern!r} matches none of the module's {len(paths)} "
                f"weights; the nearest are {nearest}"
            )


def train_recomputed_layers(model: nn.Module) -> None:
    """Let weights train in layers that are computed again and whose input needs no gradient.

    A layer that is computed again has a backward only where its input asks for a gradient,
    which the rows of a frozen embedding do not.
    """
    for part in model.modules():
        if isinstance(part, TransformerBlock) and part.config.recompute_granularity == "full":
            part.register_forward_pre_hook(_ask_for_gradient, with_kwargs=True)


def _ask_for_gradient(
    block: TransformerBlock, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    rows = args[0] if args else kwargs["hidden_states"]
    trains = any(parameter.requires_grad for parameter in block.parameters())
    if trains and torch.is_grad_enabled() and rows is not None and not rows.requires_grad:
        rows.requires_grad_()
