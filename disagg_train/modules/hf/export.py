"""Trained weights in the names and the precision of a Hugging Face checkpoint, as safetensors.

One tensor is read, turned and handed on at a time; a file's worth waits to be written.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from safetensors.torch import save_file
from torch import Tensor

from disagg_train.errors import CheckpointError
from disagg_train.modules.hf.checkpoint import Checkpoint
from disagg_train.modules.hf.rules import Naming

SHARD_BYTES = 5_000_000_000
"""Most bytes of a file; a single larger tensor has one of its own."""

Named = Iterator[tuple[str, Tensor]]


class SafetensorsWriter:
    """Writes ``model.safetensors``, or numbered files and their index where that grows too large.

    Use it in a ``with``; files get their names at its end.

    Args:
        folder: made if missing.
        shard_bytes: most bytes of a file.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder, self._shard_bytes = folder, shard_bytes
        self._waiting: dict[str, Tensor] = {}
        self._waiting_bytes = 0
        self._written: list[tuple[Path, list[str]]] = []
        self._total_bytes = 0
        self._bytes_of: Counter[torch.dtype] = Counter()
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a tensor, now or with those that follow."""
        if self._waiting and self._waiting_bytes + tensor.nbytes > self._shard_bytes:
            self._write()
        self._waiting[name] = tensor.contiguous().clone()  # parts of one tensor share memory
        self._waiting_bytes += tensor.nbytes
        self._bytes_of[tensor.dtype] += tensor.nbytes

    @property
    def dtype(self) -> str:
        """The precision of most of what was written, as configs name it."""
        (dtype, _), *_ = self._bytes_of.most_common(1)
        return str(dtype).removeprefix("torch.")

    def _write(self) -> None:
        path = self._folder / f"part-{len(self._written) + 1}.safetensors"
        save_file(self._waiting, path, metadata={"format": "pt"})
        self._written.append((path, list(self._waiting)))
        self._total_bytes += self._waiting_bytes
        self._waiting, self._waiting_bytes = {}, 0

    def _finish(self) -> None:
        self._write()
        if len(self._written) == 1:
            self._written[0][0].rename(self._folder / "model.safetensors")
            return
        homes, count = {}, len(self._written)
        for number, (path, names) in enumerate(self._written, start=1):
            final = f"model-{number:05d}-of-{count:05d}.safetensors"
            path.rename(self._folder / final)
            homes.update(dict.fromkeys(names, final))
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": homes}
        text = json.dumps(index, indent=2, sort_keys=True)
        (self._folder / "model.safetensors.index.json").write_text(text + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._finish()


@dataclass(frozen=True)
class TrainedModule:
    """A module's weights after training, and the checkpoint that they came from.

    Args:
        paths: of its weights in our module.
        read: path -> full weight in fp32.
        naming: path -> rule, None for weights that a model of transformers has no place for.
        original: checkpoint that the module began with, None where its weights were drawn.
        unused: what a model of transformers has and ours does not, where no original has it.
        leave_out: names in ``original``, without prefix, that our weights make wrong.
        dtype: to write in; None for that of ``original``, and fp32 without one.
        computed_in: precision of training; frozen weights were rounded to it.
    """

    paths: Iterable[str]
    read: Callable[[str], Tensor]
    naming: Naming
    original: Checkpoint | None
    unused: Mapping[str, Tensor] = field(default_factory=dict)
    leave_out: tuple[str, ...] = ()
    dtype: torch.dtype | None = None
    computed_in: torch.dtype = torch.float32

    def tensors_as_they_came(self, name_of: Callable[[str], str]) -> Named:
        """Yield everything that the original holds, by its names there, with our weights in it.

        Args:
            name_of: name without prefix -> name where the original has no such tensor.
        """
        assert self.original is not None
        done = set()
        for name, tensor, stored in self._ours():
            done.add(stored)
            yield stored or name_of(name), tensor
        left_out = {self._find(name) for name in self.leave_out}
        for stored in self.original.names:
            if stored not in done | left_out:
                yield stored, self._cast(self._original(stored))

    def tensors(self, name_of: Callable[[str], str]) -> Named:
        """Yield the model's tensors, those of the original that we do not build among them.

        Args:
            name_of: name without prefix -> name to write.
        """
        done = set()
        for name, tensor, stored in self._ours():
            done.add(stored)
            yield name_of(name), tensor
        if self.original is None:
            for name, tensor in self.unused.items():
                yield name_of(name), self._cast(tensor)
            return
        prefix = self.original.prefix
        for stored in self.original.names:
            name = stored.removeprefix(prefix)
            inside = stored.startswith(prefix) and name not in self.leave_out
            if inside and stored not in done:
                yield name_of(name), self._cast(self._original(stored))

    def rest(self) -> Named:
        """Yield (path, weight) of the weights that no rule names, in fp32 or ``dtype``."""
        for path in self.paths:
            if self.naming(path) is None:
                yield path, self._cast(self.read(path))

    def _ours(self) -> Iterator[tuple[str, Tensor, str | None]]:
        """Yield (name without prefix, tensor, name in the original) of the trained weights.

        What stands beside the layers comes last: the first name found decides the prefix.
        """
        rules = ((path, self.naming(path)) for path in self.paths)
        known = [(path, rule) for path, rule in rules if rule is not None]
        for path, rule in sorted(known, key=lambda each: "lm_head.weight" in each[1].names):
            for name, tensor in zip(rule.names, rule.split(self.read(path)), strict=True):
                stored = self._find(name)
                yield name, self._restored(tensor, stored), stored

    def _restored(self, tensor: Tensor, stored: str | None) -> Tensor:
        """Return a trained tensor in the precision to write, or the original if it never moved."""
        if stored is None:
            return self._cast(tensor)
        original = self._original(stored)
        if original.shape != tensor.shape:
            raise CheckpointError(
                f"{stored} is {list(original.shape)} in the pretrained checkpoint, but "
                f"{list(tensor.shape)} after training; is it still the one that the run began with?"
            )
        if torch.equal(original.to(self.computed_in).float(), tensor.float()):
            return self._cast(original)
        return self._cast(tensor if self.dtype else tensor.to(original.dtype))

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if self.dtype and tensor.is_floating_point() else tensor

    def _find(self, name: str) -> str | None:
        return self.original.find(name) if self.original else None

    def _original(self, stored: str) -> Tensor:
        assert self.original is not None
        return self.original.stored(stored)
