"""All checkpoints of a run in one folder, and the manifest that makes a checkpoint count.

A checkpoint is a folder ``step-00000120`` with a folder per module and ``manifest.json``, which
is written last: whatever an interrupted save leaves behind has none. Folders may be addresses
that fsspec knows.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from disagg_train.errors import CheckpointError

MANIFEST = "manifest.json"
VERSION = 2
_NAME = re.compile(r"step-(\d{8,})")
_HASHING_THREADS = 8


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is of, and what it consists of.

    Args:
        step: training steps that the state has behind it.
        job: the job, as plain data.
        files: path below the checkpoint's folder -> SHA-256 of its content.
        sampler: where the order of samples stood; None if that is not known.
        bad_samples: samples taken out so far.
        version: of this format.
    """

    step: int
    job: dict[str, Any]
    files: dict[str, str]
    sampler: dict[str, Any] | None = None
    bad_samples: list[dict[str, Any]] | None = None
    version: int = VERSION


class CheckpointStore:
    """The checkpoints of a run.

    Args:
        folder: a path, or an address that fsspec knows.
    """

    def __init__(self, folder: str) -> None:
        self._fs, root = url_to_fs(folder)
        self._root = root.rstrip("/")
        self._is_local = isinstance(self._fs, LocalFileSystem)
        self._committed: int | None = None

    def begin(self, steps_done: int) -> str:
        """Make the folder of a new checkpoint, empty; return its address.

        A checkpoint of the same step that is there already goes, its manifest first.

        Raises:
            CheckpointError: the folder cannot be made.
        """
        with self._said_of(self._folder(steps_done)):
            self._remove(steps_done)
            self._fs.makedirs(self._folder(steps_done), exist_ok=True)
        return self.address(steps_done)

    def commit(self, manifest: Manifest) -> None:
        """Make a checkpoint count: write its manifest, at once or not at all.

        Raises:
            CheckpointError: it cannot be written.
        """
        folder = self._folder(manifest.step)
        content = json.dumps(asdict(manifest), indent=2).encode()
        with self._said_of(f"{folder}/{MANIFEST}"):
            if self._is_local:
                _write_durably(Path(folder), content)
            else:
                self._fs.pipe_file(f"{folder}/{MANIFEST}", content)
        self._committed = manifest.step

    def steps(self) -> list[int]:
        """Return the steps of all complete checkpoints, ascending."""
        return [s for s in self._folders() if self._fs.exists(f"{self._folder(s)}/{MANIFEST}")]

    def address(self, steps_done: int) -> str:
        """Return the folder of a checkpoint: an absolute path, or an address."""
        folder = self._folder(steps_done)
        return folder if self._is_local else str(self._fs.unstrip_protocol(folder))

    def read(self, steps_done: int) -> Manifest:
        """Return a checkpoint's manifest.

        Raises:
            CheckpointError: there is none, or it is not one.
        """
        return read_manifest(self.address(steps_done))

    def verify(self, steps_done: int) -> None:
        """Hold every file against its SHA-256; it takes a second per several GB.

        Raises:
            CheckpointError: a file is gone or not what the manifest says; it names the file.
        """
        verify(self.address(steps_done))

    def newest_sound(self) -> tuple[Manifest | None, list[str]]:
        """Return the newest checkpoint that is whole, and what is wrong with newer ones."""
        notes: list[str] = []
        for step in reversed(self.steps()):
            try:
                self.verify(step)
                return self.read(step), notes
            except CheckpointError as error:
                notes.append(str(error))
        return None, notes

    def prune(self, keep: int) -> None:
        """Remove all but the newest complete checkpoints, and what interrupted saves left.

        What is newer than the last committed one stays: it is damaged or of another branch of
        the run, and no reason to remove older ones that are sound.

        Raises:
            CheckpointError: something cannot be removed.
        """
        complete = self.steps()
        if self._committed is not None:
            complete = [step for step in complete if step <= self._committed]
        kept = complete[-keep:]
        for step in self._folders():
            if kept and step < kept[-1] and step not in kept:
                with self._said_of(self._folder(step)):
                    self._remove(step)

    def clear(self, after: int = -1) -> None:
        """Remove all checkpoints with more than ``after`` steps.

        Raises:
            CheckpointError: something cannot be removed.
        """
        for step in self._folders():
            if step > after:
                with self._said_of(self._folder(step)):
                    self._remove(step)

    def _folder(self, steps_done: int) -> str:
        return f"{self._root}/step-{steps_done:08d}"

    def _folders(self) -> list[int]:
        """Return the steps of all checkpoints, complete or not, ascending."""
        self._fs.invalidate_cache()
        if not self._fs.isdir(self._root):
            return []
        names = (Path(path).name for path in self._fs.ls(self._root, detail=False))
        return sorted(int(found[1]) for found in map(_NAME.fullmatch, names) if found)

    def _remove(self, steps_done: int) -> None:
        folder = self._folder(steps_done)
        if self._fs.exists(f"{folder}/{MANIFEST}"):
            self._fs.rm_file(f"{folder}/{MANIFEST}")
        if self._fs.exists(folder):
            self._fs.rm(folder, recursive=True)

    @contextmanager
    def _said_of(self, path: str) -> Iterator[None]:
        """Turn the file system's errors into ours, which name the path."""
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"cannot write {path}: {error}; make room there, or name another folder in "
                f"checkpoint.folder"
            ) from error


def read_manifest(folder: str) -> Manifest:
    """Return the manifest of the checkpoint in a folder.

    Raises:
        CheckpointError: there is none, or it is not one.
    """
    fs, path = url_to_fs(folder)
    file = f"{path.rstrip('/')}/{MANIFEST}"
    try:
        content = json.loads(fs.cat_file(file))
        if content["version"] != VERSION:
            raise CheckpointError(
                f"{file} is of version {content['version']}, this program reads {VERSION}; use "
                f"the release that wrote it"
            )
        return Manifest(**content)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} has no {MANIFEST}; it is no finished checkpoint, name another one"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read {file}: {error!r}") from None


def verify(folder: str) -> None:
    """Hold every file of the checkpoint in a folder against its SHA-256.

    Raises:
        CheckpointError: a file is gone or not what the manifest says; it names the file.
    """
    files = read_manifest(folder).files
    fs, root = url_to_fs(folder)

    def check(name: str) -> None:
        path = f"{root.rstrip('/')}/{name}"
        if _sha256(fs, path) != files[name]:
            raise CheckpointError(f"{path} changed since it was saved")

    with ThreadPoolExecutor(_HASHING_THREADS, thread_name_prefix="verify") as threads:
        list(threads.map(check, files))


def _sha256(fs: Any, path: str) -> str:
    try:
        with fs.open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise CheckpointError(f"{path} is gone; the manifest names it") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None


def _write_durably(folder: Path, content: bytes) -> None:
    """Write a manifest that is there after a loss of power, or no manifest at all."""
    partial = folder / f"{MANIFEST}.partial"
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    for module in folder.iterdir():
        if module.is_dir():
            _sync_folder(module)
    _sync_folder(folder)
    partial.rename(folder / MANIFEST)
    _sync_folder(folder)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, as fsync of a file does its content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
