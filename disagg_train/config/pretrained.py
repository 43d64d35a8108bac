"""Sizes from a Hugging Face checkpoint: its ``config.json`` -> the ``model`` of a module.

The folder is known on every rank by the same name, so a local one is made absolute; a hub id is
resolved on each machine, into the cache of ``huggingface_hub``.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from disagg_train.config.job import LANGUAGE
from disagg_train.config.pretrained_encoders import ENCODER_FAMILIES, FEATURE_FIELDS
from disagg_train.config.pretrained_language import LANGUAGE_FAMILIES
from disagg_train.errors import ConfigError

Values = Mapping[str, Any]

_FREE = {
    "norm_eps",
    "activation",
    "feature_layer",
    "last_norm",
    "rotary_base",
    "rope_scaling",
    "tie_embeddings",
    "experts_per_token",
}
"""Fields of ``model`` on which no weight's shape depends."""


def fill_pretrained(modules: Any) -> None:
    """Fill in ``kind`` and ``model`` of every module that names a checkpoint, in place.

    Fields of ``model`` that are given stay. What is no table of modules, and a module's other
    mistakes, are left for the job's own rules to name.

    Raises:
        ConfigError: a checkpoint is not there, or is of a model that is not run here.
    """
    for name, module in modules.items() if isinstance(modules, dict) else ():
        if isinstance(module, dict) and isinstance(module.get("pretrained"), str):
            try:
                _fill(name, module)
            except ConfigError as error:
                raise ConfigError(f"modules.{name}.pretrained: {error}") from None


def _fill(name: str, module: dict[str, Any]) -> None:
    named, kind = module["pretrained"], module.get("kind")
    if Path(named).expanduser().is_dir():
        module["pretrained"] = str(Path(named).expanduser().absolute())
    if isinstance(kind, str) and ":" in kind:
        return  # a class of one's own reads its checkpoint itself
    config = read_config(module["pretrained"])
    part = part_of(config, language=kind == "gpt" or (kind is None and name == LANGUAGE))
    found, sizes_of = _family(part)
    if kind is not None and kind != found:
        raise ConfigError(
            f"{named!r} holds a model of type {part['model_type']!r}, which is no {kind!r}; "
            f"use kind: {found}"
        )
    given = module.get("model")
    if given is None or isinstance(given, dict):
        sizes = sizes_of(part)
        _check_given(given or {}, sizes)
        module.update(kind=found, model=sizes | (given or {}))


def _check_given(given: Values, sizes: Values) -> None:
    """Refuse given fields with which the checkpoint's weights would not fit, or would be left out.

    Fewer layers are fine: the first ones are then read.
    """
    for field, theirs in sizes.items():
        value = given.get(field, theirs)
        fewer = field == "num_layers" and isinstance(value, int) and value <= theirs
        if theirs is not None and field not in _FREE and not fewer and value != theirs:
            raise ConfigError(
                f"model.{field} is {value!r}, but the checkpoint's weights are made for "
                f"{theirs!r}; leave it out, or leave pretrained out"
            )


def read_config(pretrained: str) -> dict[str, Any]:
    """Return what a checkpoint's ``config.json`` says.

    Raises:
        ConfigError: there is no checkpoint, or its ``config.json`` cannot be read.
    """
    path = checkpoint_folder(pretrained, ["config.json"]) / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            f"{path.parent} has no config.json; name the folder that save_pretrained wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path} holds no fields")
    return config


def checkpoint_folder(pretrained: str, patterns: Sequence[str]) -> Path:
    """Return the local folder of a checkpoint.

    Args:
        pretrained: a folder, or a hub id.
        patterns: of the files that must be there; those of a hub id are downloaded if need be.

    Raises:
        ConfigError: there is no such folder, and the hub does not have it or cannot be reached.
    """
    folder = Path(pretrained).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or pretrained.startswith(".") or pretrained.count("/") > 1:
        raise ConfigError(f"there is no folder {pretrained!r}")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(pretrained, allow_patterns=list(patterns)))
    except Exception as error:
        raise ConfigError(
            f"there is no folder {pretrained!r} here, and as a hub id it cannot be had: "
            f"{_first_line(error)}; a local folder works without the hub"
        ) from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def part_of(config: Values, language: bool) -> dict[str, Any]:
    """Return the part of a checkpoint's config that describes its LLM, or its encoder.

    A checkpoint of one model alone is that part itself. One of a whole multimodal model says
    beside the parts whether the LLM's embedding is tied; either place counts. What it says of
    the encoder's output (a LLaVA's feature layer) goes with the encoder.
    """
    part = config.get("text_config" if language else "vision_config")
    if not isinstance(part, dict):
        return dict(config)
    found = {"model_type": config.get("model_type")} | part
    if language and config.get("tie_word_embeddings"):
        found["tie_word_embeddings"] = True
    if not language and config.get("model_type") == "llava":
        found |= {name: config.get(name, default) for name, default in FEATURE_FIELDS.items()}
    return found


def _family(part: Values) -> tuple[str, Callable[[Values], dict[str, Any]]]:
    """Return the kind of a checkpoint's model, and what turns its config into our fields."""
    model_type = str(part.get("model_type"))
    if model_type in LANGUAGE_FAMILIES:
        return "gpt", LANGUAGE_FAMILIES[model_type]
    if model_type in ENCODER_FAMILIES:
        return model_type.removesuffix("_vision_model"), ENCODER_FAMILIES[model_type]
    known = sorted({*LANGUAGE_FAMILIES, *ENCODER_FAMILIES})
    raise ConfigError(f"model_type is {model_type!r}, which is not run here; known are {known}")
