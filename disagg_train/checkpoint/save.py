"""The final checkpoint: full weights, in a file per module and rank, and a manifest."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def load_weights(folder: Path) -> dict[str, NDArray[Any]]:
    """Return full weights by full name.

    Raises:
        CheckpointError: the manifest is missing or a file is not what it says.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {MANIFEST}; it is no finished checkpoint") from None
    weights = {}
    for name, expected in manifest["files"].items():
        if _sha256(folder / name) != expected:
            raise CheckpointError(f"{folder / name} changed since it was saved")
        with np.load(folder / name) as tensors:
            module = name.partition(".")[0]
            weights.update({f"{module}.{path}": tensors[path] for path in tensors.files})
    return weights


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
