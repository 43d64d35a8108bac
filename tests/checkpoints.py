"""A whole checkpoint at once, for comparisons."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from disagg_train.checkpoint.reader import CheckpointReader


def load_weights(run: Path | str) -> dict[str, NDArray[Any]]:
    """Return full weights by full name, once every file is found to be what the manifest says."""
    with CheckpointReader(run) as reader:
        reader.verify()
        return {name: reader.read(name) for name in reader.names}
