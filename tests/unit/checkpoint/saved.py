"""Small checkpoints, made without ranks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from disagg_train.checkpoint.manifest import CheckpointStore, Manifest
from disagg_train.checkpoint.sharded import Chunk, save_module

WEIGHTS = {
    "vision.a.weight": np.arange(6.0, dtype=np.float32).reshape(2, 3),
    "vision.b": np.ones(5, dtype=np.float32),
    "language.b": np.full((3, 4), 0.5, dtype=np.float32),
}


def save_weights(
    folder: str,
    weights: Mapping[str, NDArray[Any]] = WEIGHTS,
    step: int = 3,
    job: Mapping[str, Any] | None = None,
) -> str:
    """Save a checkpoint of weights alone; return its folder.

    Args:
        folder: of all checkpoints.
        weights: full tensors by full name.
        step: training steps behind it.
        job: of the run.
    """
    store = CheckpointStore(folder)
    address, files = store.begin(step), {}
    for module in {name.partition(".")[0] for name in weights}:
        chunks = [
            Chunk(name, weight.shape, (0,) * weight.ndim, torch.from_numpy(weight))
            for name, weight in weights.items()
            if name.startswith(f"{module}.")
        ]
        sums = save_module(f"{address}/{module}", chunks)
        files |= {f"{module}/{file}": digest for file, digest in sums.items()}
    store.commit(Manifest(step, dict(job or {"name": "x"}), files))
    return address
