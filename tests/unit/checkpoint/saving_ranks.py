"""Ranks that save checkpoints together, and die or fail at a given moment of it."""

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

NUM_RANKS = 2
DEADLINE_S = 60.0
ROWS, COLUMNS = 6, 1000


class Moments:
    """Counts what a process does to the files of a checkpoint, and ends it at one of them.

    Args:
        folder: of the checkpoints.
        last: which one it does not live to see; None for none.
    """

    def __init__(self, folder: Path, last: int | None) -> None:
        self._folder, self._last = str(folder), last
        self.count = 0

    def begin(self) -> None:
        """Watch from now on."""
        from disagg_train.checkpoint import sharded

        write = sharded._HashedStream.write

        def watched(stream: Any, content: Any) -> int:
            self._pass()
            return write(stream, content)

        sharded._HashedStream.write = watched
        sys.addaudithook(self._on_event)

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(("open", "os.")) and str(arguments[:1]).find(self._folder) >= 0:
            self._pass()

    def _pass(self) -> None:
        if self.count == self._last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1


def values(step: int) -> Any:
    """Return the tensor that the ranks save after a step."""
    import torch

    return torch.arange(ROWS * COLUMNS, dtype=torch.float32).view(ROWS, COLUMNS) + step


def save_twice(rank: int, checkpoints: Path, victim: int, last: int | None, out: Path) -> None:
    """Save two checkpoints; during the second one, ``victim`` dies at its moment ``last``.

    A rank that lives leaves how many moments it saw and the error that it got, if any.
    """
    from disagg_train.checkpoint.manifest import CheckpointStore

    moments = Moments(checkpoints, last if rank == victim else None)

    def save() -> None:
        store = CheckpointStore(str(checkpoints))
        _save(rank, store, 1)
        moments.begin()
        _save(rank, store, 2)

    error = _error_of(rank, out, save)
    (out / f"{rank}.json").write_text(json.dumps({"moments": moments.count, "error": error}))


def save_once(rank: int, folder: Path, out: Path) -> None:
    """Save one module; leave the error."""
    from disagg_train.checkpoint.sharded import save_module

    def save() -> None:
        import torch.distributed as dist

        save_module(str(folder), _chunks(rank, 1), dist.group.WORLD)

    (out / f"{rank}.json").write_text(json.dumps({"error": _error_of(rank, out, save)}))


def _error_of(rank: int, out: Path, what: Callable[[], None]) -> str:
    """Do something as a rank of the default world."""
    import torch.distributed as dist

    timeout = timedelta(seconds=DEADLINE_S)
    dist.init_process_group("gloo", f"file://{out}/store", timeout, NUM_RANKS, rank)
    try:
        what()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        with suppress(RuntimeError):
            dist.destroy_process_group()
    return ""


def _save(rank: int, store: Any, step: int) -> None:
    """Save and commit as a driver and its ranks do; rank 0 is both."""
    import torch.distributed as dist

    from disagg_train.checkpoint.manifest import Manifest
    from disagg_train.checkpoint.sharded import save_module

    if rank == 0:
        store.begin(step)
    dist.barrier()
    sums = save_module(f"{store.address(step)}/m", _chunks(rank, step), dist.group.WORLD)
    everyones: list[Any] = [None] * NUM_RANKS
    dist.all_gather_object(everyones, sums)
    if rank == 0:
        files = {f"m/{name}": digest for each in everyones for name, digest in each.items()}
        store.commit(Manifest(step, {}, files))
        store.prune(keep=1)


def _chunks(rank: int, step: int) -> list[Any]:
    from disagg_train.checkpoint.sharded import Chunk

    rows = ROWS // NUM_RANKS
    mine = values(step)[rank * rows : (rank + 1) * rows]
    return [Chunk("m.w", (ROWS, COLUMNS), (rank * rows, 0), mine)]
