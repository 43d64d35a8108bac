"""Reads the weights of a finished checkpoint, one at a time and whole."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from fsspec.core import url_to_fs
from numpy.typing import NDArray

from disagg_train.checkpoint.manifest import MANIFEST, CheckpointStore, read_manifest, verify
from disagg_train.checkpoint.sharded import ModuleState, storage_reader
from disagg_train.errors import CheckpointError

CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints in its output, where the job names no other."""


class CheckpointReader:
    """Reads single weights of a finished checkpoint; nothing is held in memory.

    Args:
        run: the output folder of a run, its folder of checkpoints, or one checkpoint's own; of
            several, the newest counts. It may be an address that fsspec knows.

    Raises:
        CheckpointError: there is no finished checkpoint, or it cannot be read.
    """

    def __init__(self, run: Path | str) -> None:
        self.folder = _checkpoint_in(str(run))
        manifest = read_manifest(self.folder)
        self.job, self.step = manifest.job, manifest.step
        modules = {file.partition("/")[0] for file in manifest.files}
        self._modules = {name: self._open(name) for name in sorted(modules)}

    @property
    def names(self) -> list[str]:
        """Full names (``module.path``) of all weights."""
        return [name for state in self._modules.values() for name in _weights_of(state)]

    def __contains__(self, name: str) -> bool:
        return name in self._modules.get(name.partition(".")[0], ())

    def read(self, name: str) -> NDArray[Any]:
        """Return a full weight by its full name, in fp32.

        Raises:
            CheckpointError: it cannot be read.
        """
        weight: NDArray[Any] = self._modules[name.partition(".")[0]].read(name).float().numpy()
        return weight

    def verify(self) -> None:
        """Hold every file against its SHA-256; it takes a second per several GB.

        Nothing else finds what changed in a file: who checks for all ranks calls it once.

        Raises:
            CheckpointError: a file is not what the manifest says.
        """
        verify(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: no file stays open."""

    def _open(self, module: str) -> ModuleState:
        folder = f"{self.folder}/{module}"
        return ModuleState(storage_reader(folder), folder)


def _weights_of(state: ModuleState) -> Iterator[str]:
    return (name for name in state.names if "@" not in name)


def _checkpoint_in(run: str) -> str:
    fs, path = url_to_fs(run)
    if fs.exists(f"{path.rstrip('/')}/{MANIFEST}"):
        return run.rstrip("/")
    for folder in (run, f"{run.rstrip('/')}/{CHECKPOINTS}"):
        store = CheckpointStore(folder)
        if steps := store.steps():
            return store.address(steps[-1])
    raise CheckpointError(
        f"{run} has no {MANIFEST}, nor has a step-* folder in it or in its folder "
        f"`{CHECKPOINTS}`; it is no finished checkpoint, name the output folder of a run that "
        f"saved one"
    )
