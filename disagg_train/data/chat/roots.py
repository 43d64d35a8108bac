"""Files below a data root, and nothing else: a data set's paths are not to be trusted."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from disagg_train.errors import DataError

Stamp = tuple[int, int]
"""(time of the last change in ns, bytes) of a file."""
GONE: Stamp = (-1, -1)
"""Stamp of a file that is not there, or may not be read."""


class DataRoot:
    """A folder whose files a data set may name.

    Args:
        folder: may itself be a link.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._real = os.path.realpath(folder)
        self._inside: dict[str, str] = {}

    def resolve(self, path: str) -> tuple[str, Stamp]:
        """Return the file that a relative path names, and its stamp.

        Raises:
            DataError: it leaves the root, or is missing, empty or no file.
        """
        where = self._where(path)
        try:
            found = os.lstat(where)
            if stat.S_ISLNK(found.st_mode):
                where = self._checked(os.path.realpath(where), path)
                found = os.stat(where)
        except OSError as error:
            raise DataError(f"{path!r}: {error.strerror}; its folder is {self.folder}") from None
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{path!r} is not a file")
        return where, (found.st_mtime_ns, found.st_size)

    def stamp(self, path: str) -> Stamp:
        """Return a file's stamp, ``GONE`` where it cannot be read."""
        try:
            return self.resolve(path)[1]
        except DataError:
            return GONE

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading.

        Raises:
            DataError: it leaves the root, or cannot be read.
        """
        where, (_, size) = self.resolve(path)
        if size == 0:
            raise DataError(f"{path!r} is empty (0 bytes)")
        try:
            return Path(where).open("rb")
        except OSError as error:
            raise DataError(f"{path!r}: {error.strerror}") from None

    def _where(self, path: str) -> str:
        parts = path.split("/")
        if os.path.isabs(path) or ".." in parts or "://" in path or "\0" in path:
            raise DataError(
                f"{path!r} leaves the data root {self.folder}; name files relative to the root"
            )
        folder, _, name = path.rpartition("/")
        if name in ("", "."):
            raise DataError(f"{path!r} is not a file")
        if folder not in self._inside:
            real = os.path.realpath(os.path.join(self._real, folder))
            self._inside[folder] = self._checked(real, path)
        return f"{self._inside[folder]}/{name}"

    def _checked(self, real: str, path: str) -> str:
        if real != self._real and not real.startswith(self._real.rstrip("/") + "/"):
            raise DataError(f"{path!r} is a link that leaves the data root {self.folder}")
        return real
