"""Gives each of some processes a part of a core, as if it had a small device of its own. Linux.

More ranks than cores contend: one that waits lends its core to the others, and idle time costs
nothing. With a quota each, what a rank does not use is lost, as on a GPU.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from disagg_train.errors import ClusterError

_PERIOD_US = 5_000
_V1, _V2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")


@contextmanager
def core_share(process_ids: Sequence[int], cores: float) -> Iterator[None]:
    """Limit each of some processes to a part of a core, while the context lasts.

    Args:
        process_ids: of processes that this user may limit.
        cores: of each.

    Raises:
        ClusterError: this machine does not let this user limit processes.
    """
    made: list[Path] = []
    try:
        for process_id in process_ids:
            _share(process_id, cores, made)
        yield
    finally:
        for folder in made:
            for held in (folder / "cgroup.procs").read_text().split():
                _move(int(held), _root())
            folder.rmdir()


def _share(process_id: int, cores: float, made: list[Path]) -> None:
    """Limit one process; its folder joins ``made`` as soon as it is there."""
    folder = _root() / f"disagg_train-{os.getpid()}-{process_id}"
    try:
        folder.mkdir()
        made.append(folder)
        _limit(folder, int(cores * _PERIOD_US))
        _move(process_id, folder)
    except OSError as error:
        raise ClusterError(
            f"processes cannot be given {cores} cores each: {error}; it takes a user who may "
            f"write to the cgroup folder of the CPU controller"
        ) from error


def can_share_cores() -> bool:
    """Whether this machine lets this user limit processes."""
    return os.access(_root(), os.W_OK) and (_is_v1() or "cpu" in _controllers())


def _is_v1() -> bool:
    return (_V1 / "cgroup.procs").exists()


def _root() -> Path:
    return _V1 if _is_v1() else _V2


def _controllers() -> list[str]:
    file = _V2 / "cgroup.subtree_control"
    return file.read_text().split() if file.exists() else []


def _limit(folder: Path, quota_us: int) -> None:
    if _is_v1():
        (folder / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        (folder / "cpu.cfs_quota_us").write_text(str(quota_us))
    else:
        (folder / "cpu.max").write_text(f"{quota_us} {_PERIOD_US}")


def _move(process_id: int, folder: Path) -> None:
    (folder / "cgroup.procs").write_text(str(process_id))
