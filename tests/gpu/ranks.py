"""Ranks as processes of their own, several on one GPU where there are few. Knows no pytest."""

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.distributed import Store, TCPStore

from disagg_train.boundary.open import open_transport
from disagg_train.boundary.transport import Transport
from disagg_train.boundary.watchdog import Watchdog

SHARED_GPU_NCCL = (2, 30)
_ENVIRONMENT = {"NCCL_MULTI_RANK_GPU_ENABLE": "1", "NCCL_LAUNCH_ORDER_IMPLICIT": "1"}
_GOODBYE_S = 10.0
_JOIN_S = 60.0


@dataclass
class RankContext:
    """What a rank's function is given.

    Args:
        place: global rank of this process.
        num_ranks: how many there are.
        store: where they meet.
        device: this rank's GPU.
        watchdog: of this process.
    """

    place: int
    num_ranks: int
    store: Store
    device: torch.device
    watchdog: Watchdog = field(default_factory=Watchdog)

    def transport(
        self,
        name: str,
        places: Sequence[int] | None = None,
        device: torch.device | None = None,
        deadline_s: float = _JOIN_S,
        peers: Sequence[int] | None = None,
    ) -> Transport:
        """Join a transport; NCCL on GPUs, gloo where ``device`` is a CPU."""
        members = tuple(range(self.num_ranks)) if places is None else tuple(places)
        where = device or self.device
        return open_transport(
            name, self.store, members, self.place, where, deadline_s, self.watchdog, peers
        )

    def meet(self, where: str) -> None:
        """Wait until every rank is here; each ``where`` serves once."""
        self.store.set(f"meet/{where}/{self.place}", "1")
        self.store.wait([f"meet/{where}/{place}" for place in range(self.num_ranks)])


Run = Callable[[RankContext], Any]


def on_ranks(run: Run, num_ranks: int, deadline_s: float) -> list[Any]:
    """Run ``run``, importable by name, in so many fresh processes; return what they return.

    Processes that have not answered by the deadline are killed, and named in the error.
    """
    host = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)  # children inherit it, before they load NCCL
    try:
        for place in range(num_ranks):
            ours, theirs = context.Pipe()
            arguments = (theirs, run, place, num_ranks, host.port)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        return _answers(pipes, time.monotonic() + deadline_s)
    finally:
        _end(processes)
        _restore(before)


def _answers(pipes: Sequence[Connection], until_s: float) -> list[Any]:
    found, errors = [], []
    for place, pipe in enumerate(pipes):
        try:
            if not pipe.poll(max(until_s - time.monotonic(), 0.0)):
                errors.append(f"rank {place} did not answer before the deadline")
                continue
            answer, error = pipe.recv()
        except EOFError:
            answer, error = None, "the process died"
        found.append(answer)
        if error:
            errors.append(f"rank {place}: {error}")
    assert not errors, "\n".join(errors)
    return found


def _end(processes: Sequence[Any]) -> None:
    for process in processes:
        process.join(_GOODBYE_S)
        if process.is_alive():
            process.kill()
            process.join(_GOODBYE_S)


def _restore(before: dict[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _serve(pipe: Connection, run: Run, place: int, num_ranks: int, port: int) -> None:
    try:
        device = torch.device("cuda", place % torch.cuda.device_count())
        torch.cuda.set_device(device)
        store = TCPStore("127.0.0.1", port, is_master=False)
        pipe.send((run(RankContext(place, num_ranks, store, device)), ""))
    except BaseException:
        pipe.send((None, traceback.format_exc()))
    finally:
        pipe.close()
        os._exit(0)  # a GPU that still hangs must not hold the process up
