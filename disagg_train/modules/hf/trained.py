"""A trained module beside the checkpoint that it began with: what an export of it is made of."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from disagg_train.config.models import TransformerConfig
from disagg_train.config.modules import (
    CustomModule,
    GptModule,
    ModuleConfig,
    TransformerModule,
    WhisperModule,
)
from disagg_train.config.pretrained import checkpoint_folder, part_of, read_config
from disagg_train.config.pretrained_encoders import ENCODER_FAMILIES, FEATURE_FIELDS
from disagg_train.config.pretrained_language import LANGUAGE_FAMILIES
from disagg_train.modules.hf.checkpoint import Checkpoint
from disagg_train.modules.hf.configs import encoder_config, language_config, unused_weights
from disagg_train.modules.hf.encoders import encoder_naming
from disagg_train.modules.hf.export import TrainedModule
from disagg_train.modules.hf.files import PATTERNS
from disagg_train.modules.hf.language import language_naming
from disagg_train.modules.hf.rules import Naming

Values = dict[str, Any]
PROJECTOR = "projector."
_BOTH = {"clip", "siglip", "siglip2"}
"""model_types of a tower with its text model: still that tower's own checkpoint."""
_CHOSEN = {"feature_layer", "last_norm"}
"""Fields of ``model`` that choose among a checkpoint's layers, and change none."""


@dataclass(frozen=True)
class Exported:
    """One module of a run.

    Args:
        module: its part of the job.
        weights: its weights in the names of transformers.
        config: its own ``config.json``; None where transformers has no such model.
        whole: ``config.json`` of the checkpoint that it began with, where that is of this module
            alone and so is written again as it came.
        folder: of that checkpoint.
    """

    module: ModuleConfig
    weights: TrainedModule
    config: Values | None
    whole: Values | None = None
    folder: Path | None = None

    def alone(self, name: str) -> str:
        """Return a tensor's name in a checkpoint of this module alone."""
        if isinstance(self.module, GptModule) and not name.startswith("lm_head."):
            return f"model.{name}"
        return f"encoder.{name}" if isinstance(self.module, WhisperModule) else name


def exported(
    module: ModuleConfig,
    paths: Sequence[str],
    read: Callable[[str], Tensor],
    dtypes: tuple[torch.dtype | None, torch.dtype],
    files: contextlib.ExitStack,
) -> Exported:
    """Return what a module's export is made of.

    Args:
        module: its part of the job.
        paths: of its weights.
        read: path -> full weight.
        dtypes: to write in (None for the original's), and that of training.
        files: keeps the original's files open.

    Raises:
        ConfigError: no model of transformers is like this one, or its checkpoint is gone.
    """
    if isinstance(module, CustomModule):
        return Exported(module, TrainedModule(paths, read, _no_rule, None), None)
    assert isinstance(module, GptModule | TransformerModule)
    config = _own_config(module)
    folder, whole, original = None, None, None
    if module.pretrained is not None:
        folder = checkpoint_folder(module.pretrained, PATTERNS)
        outer = read_config(module.pretrained)
        part = part_of(outer, isinstance(module, GptModule))
        if _fits(module, part):
            original = files.enter_context(Checkpoint(folder))
            config = _tower(part)
            whole = outer if part == outer or outer.get("model_type") in _BOTH else None
    naming = _naming(module, config)
    unused = unused_weights(module) if isinstance(module, TransformerModule) else {}
    weights = TrainedModule(
        paths, read, naming, original, unused, _wrong_in_original(module), *dtypes
    )
    return Exported(module, weights, config, whole, folder)


def _own_config(module: GptModule | TransformerModule) -> Values | None:
    """Return a config made of the job's sizes."""
    if isinstance(module, GptModule):
        return language_config(module.model)
    return encoder_config(module)


def _fits(module: GptModule | TransformerModule, part: Mapping[str, Any]) -> bool:
    """Whether the job runs the checkpoint's model, and not another one with some of its sizes."""
    model_type = str(part.get("model_type"))
    families = {**LANGUAGE_FAMILIES, **ENCODER_FAMILIES}
    theirs = type(module.model).model_validate(families[model_type](part))
    return _used(module.model) == _used(theirs)


def _used(model: TransformerConfig) -> Values:
    """Return sizes, with the values that are used where none was given."""
    fields = model.model_dump(exclude=_CHOSEN)
    return fields | {
        field: getattr(model, used)
        for field, used in (
            ("ffn_hidden_size", "ffn_size"),
            ("num_query_groups", "query_groups"),
            ("head_size", "head_width"),
            ("expert_ffn_hidden_size", "expert_ffn_size"),
        )
        if field in fields
    }


def _tower(part: Mapping[str, Any]) -> Values:
    """Return a part's config without what a LLaVA says of it, under its own type."""
    found = {name: value for name, value in part.items() if name not in FEATURE_FIELDS}
    if found.get("model_type") in _BOTH:
        inner = found.get("vision_config")
        found = dict(inner if isinstance(inner, dict) else found)
        found["model_type"] = f"{part['model_type']}_vision_model"
    return found


def _naming(module: GptModule | TransformerModule, config: Values | None) -> Naming:
    if isinstance(module, TransformerModule):
        return encoder_naming(module)
    assert config is not None
    return language_naming(module.model, str(config["model_type"]))


def _no_rule(path: str) -> None:
    """Return the rule of a weight of a class that nobody but its author knows: none."""
    del path


def _wrong_in_original(module: ModuleConfig) -> tuple[str, ...]:
    """Return names that a checkpoint may hold beside a tied embedding, which alone was trained."""
    tied = isinstance(module, GptModule) and module.model.tie_embeddings
    return ("lm_head.weight",) if tied else ()
