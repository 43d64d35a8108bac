"""Measuring many samples on several processes, with a bar of progress for people."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from disagg_train.data.chat.measure import SetReader, measure
from disagg_train.data.chat.table import Table, concatenate
from disagg_train.errors import DataError

Ints = NDArray[np.int64]
_CHUNK = 256
_FEWEST_FOR_PROCESSES = 4096
"""Starting processes takes seconds; so many samples take as long."""


class _Advance(Protocol):
    def __call__(self, samples: int) -> None: ...


def measure_all(
    reader: SetReader,
    files: Ints,
    places: Ints,
    names: Sequence[str],
    workers: int | None,
    title: str,
) -> Table:
    """Return the index's rows of samples, in order.

    Args:
        reader: of their set.
        files: per sample, its file.
        places: ``[samples, 2]`` in their files.
        names: of all encoders.
        workers: processes; as many as pay where not given.
        title: of the bar.
    """
    if workers is None:
        cores = len(os.sched_getaffinity(0))
        workers = cores if len(files) >= _FEWEST_FOR_PROCESSES else 1
    firsts = range(0, max(len(files), 1), _CHUNK)
    chunks = [(files[first : first + _CHUNK], places[first : first + _CHUNK]) for first in firsts]
    with _progress(title, len(files)) as advance:
        if workers == 1:
            parts = []
            for chunk in chunks:
                parts.append(measure(reader, *chunk, names))
                advance(len(chunk[0]))
        else:
            parts = _on_processes(reader, chunks, names, workers, advance)
    return concatenate(parts)


def _on_processes(
    reader: SetReader,
    chunks: Sequence[tuple[Ints, Ints]],
    names: Sequence[str],
    workers: int,
    advance: _Advance,
) -> list[Table]:
    # Not by fork: this process may have threads of Ray's and of the tokenizer's.
    context = multiprocessing.get_context("forkserver")
    try:
        with ProcessPoolExecutor(workers, context, _begin, (reader, tuple(names))) as pool:
            futures = [pool.submit(_measure_here, *chunk) for chunk in chunks]
            try:
                for future in as_completed(futures):
                    advance(len(future.result()))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            return [future.result() for future in futures]
    except BrokenProcessPool:
        raise DataError(
            "the processes that build the sizes index ended early: memory may be short, or the "
            "main script starts work without `if __name__ == '__main__':`; set "
            "data.options.index_workers: 1 to build it in one process"
        ) from None


_reader: SetReader
_names: tuple[str, ...]


def _begin(reader: SetReader, names: tuple[str, ...]) -> None:
    global _reader, _names  # noqa: PLW0603 - a process of the pool has one job
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _reader, _names = reader, names


def _measure_here(files: Ints, places: Ints) -> Table:
    return measure(_reader, files, places, _names)


@contextmanager
def _progress(title: str, samples: int) -> Iterator[_Advance]:
    """Show a bar where a person looks on."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    console = Console(stderr=True)
    columns = (TextColumn("sizes of {task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeLeft(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(Path(title).name, total=samples)
        yield lambda samples: bar.update(task, advance=samples)
