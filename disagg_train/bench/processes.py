"""Plain processes without Ray: one per rank, each answering requests over a pipe.

They are forked from a server that has imported what they need and started no thread, so
nothing of the parent's threads is in them, and they end with the parent. Every wait has a
deadline.
"""

import multiprocessing
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Protocol, Self

from disagg_train.errors import RankError

_GOODBYE_S = 10.0
_PRELOAD = "disagg_train.bench.preload"


class Worker[Answer](Protocol):
    """What runs in each process."""

    def run(self, count: int) -> Answer:
        """Do ``count`` rounds or steps and say what came of it."""

    def close(self) -> None:
        """Leave all groups."""


class Processes[Setup, Answer]:
    """One process per rank; a context manager that ends them.

    Args:
        make: builds the worker inside its process; importable by name.
        setups: what each rank's worker is made of.
        deadline_s: of building, and of each request.

    Raises:
        RankError: a worker raised, died, or did not answer in time.
    """

    def __init__(
        self, make: Callable[[Setup], Worker[Answer]], setups: Sequence[Setup], deadline_s: float
    ) -> None:
        self._deadline_s = deadline_s
        self._pipes: list[Connection] = []
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([_PRELOAD])
        self._processes = []
        for setup in setups:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, make, setup), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        try:
            self._answers()
        except BaseException:
            self.close()
            raise

    def run(self, count: int) -> list[Answer]:
        """Let every worker run ``count`` rounds; return their answers by rank."""
        for pipe in self._pipes:
            pipe.send(count)
        return self._answers()

    def _answers(self) -> list[Answer]:
        until_s = time.monotonic() + self._deadline_s
        return [self._answer(rank, pipe, until_s) for rank, pipe in enumerate(self._pipes)]

    def _answer(self, rank: int, pipe: Connection, until_s: float) -> Answer:
        if not pipe.poll(max(until_s - time.monotonic(), 0.0)):
            raise RankError(f"no answer in {self._deadline_s:g} s", "bench", rank)
        try:
            answer, error = pipe.recv()
        except EOFError:
            raise RankError("the process died", "bench", rank) from None
        if error:
            raise RankError(error, "bench", rank)
        found: Answer = answer
        return found

    def close(self) -> None:
        """Close the pipes, which ends the workers, and see their processes off."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(_GOODBYE_S)
            if process.is_alive():
                process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve[Setup, Answer](
    pipe: Connection, make: Callable[[Setup], Worker[Answer]], setup: Setup
) -> None:
    """Build the worker, then answer requests until the parent closes the pipe."""
    warnings.simplefilter("ignore")  # Megatron says on every rank what is not installed.
    try:
        worker = make(setup)
        pipe.send((None, ""))
        while True:
            try:
                count = pipe.recv()
            except EOFError:
                break
            pipe.send((worker.run(count), ""))
        worker.close()
    except Exception:
        pipe.send((None, traceback.format_exc()))
