"""The final checkpoint: full weights, in a file per module and rank, and a manifest."""

import hashlib
import json
import os
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from disagg_train.errors import CheckpointError

MANIFEST = "manifest.json"


def save_modules(folder: Path, weights: Mapping[str, NDArray[Any]], rank: int) -> dict[str, str]:
    """Write ``<module>.<rank>.npz`` for every module in ``weights``.

    Args:
        folder: where to write; made if missing.
        weights: full tensors by full name (``module.path``).
        rank: of this rank in its group; ranks write different weights of one module.

    Returns:
        File name -> SHA-256 of its content.
    """
    by_module: dict[str, dict[str, NDArray[Any]]] = defaultdict(dict)
    for name, tensor in weights.items():
        module, _, path = name.partition(".")
        by_module[module][path] = tensor
    folder.mkdir(parents=True, exist_ok=True)
    sums = {}
    for module, tensors in by_module.items():
        file = folder / f"{module}.{rank}.npz"
        np.savez(file, allow_pickle=False, **tensors)
        sums[file.name] = _sha256(file)
    return sums


def write_manifest(folder: Path, job: Mapping[str, Any], step: int, files: dict[str, str]) -> None:
    """Write the manifest last, and atomically: a checkpoint without one does not count."""
    manifest = {"version": 1, "step": step, "files": files, "job": dict(job)}
    partial = folder / f"{MANIFEST}.partial"
    with partial.open("w") as file:
        json.dump(manifest, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(folder / MANIFEST)


class CheckpointReader:
    """Reads single weights of a finished checkpoint; nothing is held in memory.

    Args:
        run: the output folder of a run, or its checkpoint folder.

    Raises:
        CheckpointError: there is no finished checkpoint, or a file of it is gone or damaged.
    """

    def __init__(self, run: Path) -> None:
        self.folder = run if (run / MANIFEST).exists() else run / "checkpoint"
        try:
            manifest = json.loads((self.folder / MANIFEST).read_bytes())
            self.job: dict[str, Any] = manifest["job"]
            self.step: int = manifest["step"]
            self._sums: dict[str, str] = manifest["files"]
        except FileNotFoundError:
            raise CheckpointError(
                f"{run} has no {MANIFEST}, nor has its folder `checkpoint`; it is no finished "
                f"checkpoint, name the output folder of a run that came to its end"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"cannot read {self.folder / MANIFEST}: {error}") from None
        self._files = {name: self._open(name) for name in self._sums}
        self._homes = {
            f"{file.partition('.')[0]}.{path}": (file, path)
            for file, tensors in self._files.items()
            for path in tensors.files
        }

    @property
    def names(self) -> list[str]:
        """Full names (``module.path``) of all weights."""
        return list(self._homes)

    def __contains__(self, name: str) -> bool:
        return name in self._homes

    def read(self, name: str) -> NDArray[Any]:
        """Return a full weight by its full name.

        Raises:
            CheckpointError: the file does not hold what was written.
        """
        file, path = self._homes[name]
        try:
            weight: NDArray[Any] = self._files[file][path]
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise CheckpointError(
                f"{self.folder / file} changed since it was saved: {path}: {error}"
            ) from None
        return weight

    def verify(self) -> None:
        """Hold every file against its SHA-256; it takes a second per one to two GB.

        Who checks for all ranks calls it once: ``read`` alone compares a checksum of 32 bits.

        Raises:
            CheckpointError: a file is not what the manifest says.
        """
        for name, expected in self._sums.items():
            if _sha256(self.folder / name) != expected:
                raise CheckpointError(f"{self.folder / name} changed since it was saved")

    def close(self) -> None:
        """Close all files."""
        for tensors in self._files.values():
            tensors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, name: str) -> Any:
        try:
            return np.load(self.folder / name, allow_pickle=False)
        except FileNotFoundError:
            raise CheckpointError(f"{self.folder / name} is gone; the manifest names it") from None
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise CheckpointError(
                f"{self.folder / name} changed since it was saved: {error}"
            ) from None


def load_weights(folder: Path) -> dict[str, NDArray[Any]]:
    """Return full weights by full name.

    Raises:
        CheckpointError: the manifest is missing or a file is not what it says.
    """
    with CheckpointReader(folder) as reader:
        reader.verify()
        return {name: reader.read(name) for name in reader.names}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
