"""Encoders of one's own, as the driver sees them: classes that count tokens from sizes alone.

Importing such a class imports torch, which is the user's doing; nothing is built here. What
the class must offer is written down in docs/encoders.md.
"""

import hashlib
import importlib
import inspect
from typing import Any, BinaryIO, get_args

import numpy as np
from numpy.typing import NDArray

from disagg_train.config.modules import CustomModule
from disagg_train.data.image_processors import decode_image
from disagg_train.data.processors import Modality, TokenCount
from disagg_train.errors import ConfigError, DataError

DECLARED = ("tp", "cp", "pp")
"""Degrees that a class must declare before it is cut by them; dp is free."""
_BRIGHTEST = 255.0


def import_encoder(name: str, module: CustomModule) -> Any:
    """Import the class of a module and hold it against the contract.

    Args:
        name: of the module.
        module: its part of the job.

    Returns:
        The class.

    Raises:
        ConfigError: it cannot be imported, lacks something, does not take the options, or does
            not declare a degree that the job gives it.
    """
    path, _, class_name = module.kind.partition(":")
    try:
        found = getattr(importlib.import_module(path), class_name)
    except Exception as error:  # whatever the user's file raises while it is imported
        raise ConfigError(
            f"modules.{name}.kind: cannot import {module.kind!r}: {error!r}; install its package, "
            f"or put the folder that it is in on PYTHONPATH"
        ) from error
    where = f"modules.{name}: {module.kind}"
    if not isinstance(found, type) or not callable(getattr(found, "forward", None)):
        raise ConfigError(f"{where} is no class with a `forward`; make it a torch nn.Module")
    _check_static(found, where)
    _check_modality(found, where)
    _check_options(found, module, name)
    _check_degrees(found, module, name)
    return found


def declared(encoder: Any) -> tuple[str, ...]:
    """Return the degrees that a class declares in ``parallel``."""
    return tuple(getattr(encoder, "parallel", ()))


def _check_static(found: Any, where: str) -> None:
    for method, must in (("count", True), ("load", False)):
        plain = inspect.getattr_static(found, method, None)
        if plain is None and not must:
            continue
        if not isinstance(plain, staticmethod | classmethod):
            raise ConfigError(
                f"{where} needs a static method `{method}`, which is called without any weights "
                f"being built; write @staticmethod above `def "
                f"{method}({'size' if must else 'file'}, **options)`"
            )


def _check_modality(found: Any, where: str) -> None:
    modality = getattr(found, "modality", "image")
    if modality not in get_args(Modality):
        raise ConfigError(
            f"{where}.modality is {modality!r}; use one of {list(get_args(Modality))}"
        )
    if modality != "image" and not hasattr(found, "load"):
        raise ConfigError(
            f"{where} reads {modality}, but only images are loaded without its help; give it a "
            f"static method `load(file, **options)`"
        )


def _check_options(found: Any, module: CustomModule, name: str) -> None:
    unknown = sorted(set(declared(found)) - set(DECLARED))
    if unknown:
        raise ConfigError(
            f"modules.{name}: {module.kind}.parallel has {unknown}; it may hold {list(DECLARED)}"
        )
    groups = {"groups": None} if declared(found) else {}
    calls: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
        "__init__": (found, (), groups),
        "count": (found.count, ((1, 1),), {}),
    }
    if hasattr(found, "load"):
        calls["load"] = found.load, (None,), {}
    for method, (call, arguments, more) in calls.items():
        try:
            inspect.signature(call).bind(*arguments, **module.options, **more)
        except TypeError as error:
            raise ConfigError(
                f"modules.{name}.options do not fit {module.kind}.{method}: {error}; every "
                f"option goes to __init__, count and load alike (a ** takes those it ignores)"
            ) from None


def _check_degrees(found: Any, module: CustomModule, name: str) -> None:
    for axis in DECLARED:
        degree = getattr(module.parallel, axis)
        if degree > 1 and axis not in declared(found):
            raise ConfigError(
                f"modules.{name}.parallel.{axis}={degree}, but {module.kind} does not declare "
                f"{axis!r}; use {axis}: 1 (dp is free), or teach the class and add {axis!r} to "
                f"its `parallel` (docs/encoders.md)"
            )


class OwnProcessor:
    """Prepares the inputs of an encoder of one's own.

    Args:
        name: of the module.
        module: its part of the job.

    Raises:
        ConfigError: as ``import_encoder``.
    """

    def __init__(self, name: str, module: CustomModule) -> None:
        self._where, self._module = f"modules.{name}: {module.kind}", module
        self._class = import_encoder(name, module)
        self.modality: Modality = getattr(self._class, "modality", "image")

    def __repr__(self) -> str:
        """Say what its counts depend on: a sizes index is built anew where that changes."""
        options, merge = dict(self._module.options), self._module.projector.merge
        return f"OwnProcessor({self._where}, {options}, {merge}, {_source_digest(self._class)})"

    def count(self, size: tuple[int, ...]) -> TokenCount:
        """Return the tokens of an input, as the class counts them.

        Raises:
            DataError: the class refuses such an input, or the tokens do not merge.
        """
        where, merge = self._where, self._module.projector.merge
        try:
            tokens = self._class.count(size, **self._module.options)
        except (ValueError, ArithmeticError) as error:
            raise DataError(f"{where} cannot take an input of size {size}: {error}") from error
        if not isinstance(tokens, int) or tokens < 1:
            raise DataError(
                f"{where}.count({size}) is {tokens!r}; return a whole number of tokens, 1 or more, "
                f"or raise ValueError where the encoder cannot take such an input"
            )
        if tokens % merge:
            raise DataError(
                f"{where} makes {tokens} tokens of an input of size {size}, which do not merge by "
                f"projector.merge={merge}; resize it or use another merge"
            )
        return TokenCount(tokens, tokens // merge)

    def num_patches(self, height: int, width: int) -> int:
        """Return the tokens that the encoder makes of an image."""
        return self.count((height, width)).input_tokens

    def num_tokens(self, height: int, width: int) -> int:
        """Return the tokens that reach the LLM, of an image."""
        return self.count((height, width)).tokens

    def load(self, file: BinaryIO) -> NDArray[np.float32]:
        """Decode an input as the class does, or an image as RGB ``[H, W, 3]`` in 0 to 1.

        Raises:
            DataError: it cannot be decoded.
        """
        if not hasattr(self._class, "load"):
            pixels: NDArray[np.float32] = np.asarray(decode_image(file), np.float32)
            return np.divide(pixels, _BRIGHTEST, dtype=np.float32)
        try:
            loaded = self._class.load(file, **self._module.options)
        except (ValueError, OSError) as error:
            raise DataError(f"{self._where} cannot load the input: {error}") from error
        return np.asarray(loaded, np.float32)


def _source_digest(found: type) -> str:
    """Return a digest of a class's source, empty where there is none to read."""
    try:
        return hashlib.sha256(inspect.getsource(found).encode()).hexdigest()[:16]
    except (OSError, TypeError):
        return ""
