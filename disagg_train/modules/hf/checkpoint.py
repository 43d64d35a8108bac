"""A Hugging Face checkpoint on disk, read one tensor at a time.

Files are mapped into memory, not loaded: a tensor's bytes are read when they are copied, and a
slice of it reads that slice.
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from torch import Tensor

from disagg_train.errors import CheckpointError
from disagg_train.modules.hf.rules import Rule

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"

PREFIXES = (
    "",
    "model.",
    "language_model.model.",
    "model.language_model.",
    "language_model.",
    "vision_model.",
    "vision_tower.",
    "vision_tower.vision_model.",
    "model.vision_tower.",
    "model.vision_tower.vision_model.",
    "encoder.",
    "model.encoder.",
)
"""What a checkpoint puts before a tensor's name, to say which part of a larger model it is."""


class Checkpoint:
    """The tensors of one model in a folder, which may hold others beside it.

    Use it in a ``with``; files stay open until its end.

    Raises:
        CheckpointError: the folder holds no safetensors.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = contextlib.ExitStack()
        self._open: dict[str, Any] = {}
        self._file_of = self._index()
        self._prefix: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.clear()
        self._files.close()

    @property
    def names(self) -> list[str]:
        """Names of all tensors as they are stored, with their prefixes."""
        return list(self._file_of)

    @property
    def prefix(self) -> str:
        """What stands before the model's tensors; known once a name was found."""
        return self._prefix or ""

    def read(self, rule: Rule, shape: Sequence[int]) -> Tensor:
        """Return the full tensor of a parameter, in the checkpoint's own precision.

        Args:
            rule: of the parameter.
            shape: that it must have.

        Raises:
            CheckpointError: a tensor is missing, cannot be read or has another shape.
        """
        tensors = [self._tensor(name) for name in rule.names]
        try:
            full = rule.join(tensors)
        except RuntimeError:
            full = None
        if full is None or list(full.shape) != list(shape):
            found = ", ".join(
                f"{self._prefix}{name} {list(tensor.shape)}"
                for name, tensor in zip(rule.names, tensors, strict=True)
            )
            raise CheckpointError(
                f"{self._folder}: {found} do not make the {list(shape)} that the sizes of `model` "
                f"ask for; leave sizes out to take the checkpoint's"
            )
        return full

    def _tensor(self, name: str) -> Tensor:
        stored = self.find(name)
        if stored is not None:
            return self.stored(stored)
        where = "any known prefix" if self._prefix is None else repr(self._prefix)
        some = ", ".join(sorted(self._file_of)[:3])
        raise CheckpointError(
            f"{self._folder} has no tensor {name!r} under {where}, but {len(self._file_of)} others "
            f"({some}, ...); is it a checkpoint of another model?"
        )

    def stored(self, stored: str) -> Tensor:
        """Return a tensor by its name as it is stored.

        Raises:
            CheckpointError: its file cannot be read.
        """
        file = self._file_of[stored]
        try:
            if file not in self._open:
                opened = safe_open(self._folder / file, framework="pt")
                self._open[file] = self._files.enter_context(opened)
            tensor: Tensor = self._open[file].get_tensor(stored)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self._folder / file}: cannot read {stored}: {error}") from None
        return tensor

    def find(self, name: str) -> str | None:
        """Return a tensor's stored name, None where it is not here; the first decides the prefix.

        What belongs to the whole LLM (`lm_head`) stands beside the rest, with less before it.
        """
        if self._prefix is None:
            self._prefix = next((p for p in PREFIXES if p + name in self._file_of), None)
        prefix = self._prefix
        while prefix is not None:
            if prefix + name in self._file_of:
                return prefix + name
            prefix = prefix[: prefix.rstrip(".").rfind(".") + 1] if prefix else None
        return None

    def _index(self) -> dict[str, str]:
        """Return the file of every tensor."""
        try:
            if (self._folder / _INDEX).exists():
                found: dict[str, dict[str, str]] = json.loads((self._folder / _INDEX).read_bytes())
                return dict(found["weight_map"])
            with safe_open(self._folder / _SINGLE, framework="pt") as file:
                return dict.fromkeys(file.keys(), _SINGLE)
        except FileNotFoundError:
            raise CheckpointError(
                f"{self._folder} has neither {_SINGLE} nor {_INDEX}; weights are read from "
                f"safetensors only, which save_pretrained writes"
            ) from None
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise CheckpointError(f"{self._folder}: cannot be read: {error}") from None
