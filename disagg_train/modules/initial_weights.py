"""A module's first weights: read from a checkpoint where one has them, else drawn by name."""

from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor, nn

from disagg_train.config.modules import GptModule, ModuleConfig, TransformerModule
from disagg_train.config.pretrained import checkpoint_folder, part_of, read_config
from disagg_train.errors import ConfigError
from disagg_train.modules.hf.checkpoint import Checkpoint
from disagg_train.modules.hf.encoders import encoder_naming
from disagg_train.modules.hf.language import language_naming
from disagg_train.modules.hf.rules import Naming
from disagg_train.modules.weights import draw, fill, named_weights

_FILES = ("*.safetensors", "*.json")


def fill_first_weights(
    name: str, module: ModuleConfig, model: nn.Module, seed: int, group: dist.ProcessGroup
) -> None:
    """Fill a local model with its shards, one full tensor at a time.

    Args:
        name: of the module.
        module: says which checkpoint, if any.
        model: the module's local model, whose parameters are not yet wrapped.
        seed: of what is drawn.
        group: the tp ranks that share the model.

    Raises:
        CheckpointError: the checkpoint lacks a tensor, or has it in another shape.
        ConfigError: there is no such checkpoint on this machine.
    """
    drawn = _drawn(name, model, seed)
    if module.pretrained is None:
        fill(name, model, group, drawn)
        return
    naming = naming_of(module)
    with Checkpoint(checkpoint_folder(module.pretrained, _FILES)) as checkpoint:

        def full_of(full_name: str, shape: list[int]) -> Tensor:
            rule = naming(full_name.removeprefix(f"{name}."))
            if rule is None:
                return drawn(full_name, shape)
            return checkpoint.read(rule, shape)

        fill(name, model, group, full_of)


def _drawn(name: str, model: nn.Module, seed: int) -> Callable[[str, list[int]], Tensor]:
    """Return what draws weights by name; what a model fixes, such as positions, it has made."""
    fixed = {n: p.detach().clone() for n, p in named_weights(name, model) if not p.requires_grad}
    return lambda full_name, shape: (
        fixed[full_name] if full_name in fixed else draw(seed, full_name, shape)
    )


def naming_of(module: ModuleConfig) -> Naming:
    """Return the rules of a module that names a checkpoint.

    Raises:
        ConfigError: the module is of a class whose weights have no known names.
    """
    assert module.pretrained is not None
    if isinstance(module, GptModule):
        config = part_of(read_config(module.pretrained), language=True)
        return language_naming(module.model, str(config["model_type"]))
    if isinstance(module, TransformerModule):
        return encoder_naming(module)
    raise ConfigError(f"no names of weights are known for a {type(module).__name__}")
