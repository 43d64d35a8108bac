"""The folder of a local Ray: removed at the end, or after a killed driver by whoever comes next."""

import fcntl
import shutil
import tempfile
from pathlib import Path
from typing import IO

_PREFIX, _LOCK = "disagg-train-ray-", "in-use"


class ScratchFolder:
    """A new folder below the system's temporary one; those that nobody uses any more go.

    A process holds a lock on its folder for as long as it lives, however it ends.
    """

    def __init__(self) -> None:
        for abandoned in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            _remove_if_abandoned(abandoned)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = (self.path / _LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _remove_if_abandoned(folder: Path) -> None:
    try:
        lock: IO[str] = (folder / _LOCK).open("r+")
    except OSError:  # somebody else's, or only just made
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        shutil.rmtree(folder, ignore_errors=True)
