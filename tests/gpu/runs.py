"""What each rank does in the tests of several ranks. Answers are plain values, no tensors.

In a module of its own, so that fresh processes find these functions by name.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
from torch import Tensor

from disagg_train.boundary.transport import Message, Transport
from disagg_train.boundary.watchdog import Watchdog
from disagg_train.errors import BoundaryError
from tests.gpu.crossing import CROSSINGS, Crossing, cross, draw_rows, open_communicator
from tests.gpu.ranks import RankContext

MICROBATCH = 3
HANG_S = 15.0
_CPU = torch.device("cpu")
_SLEEP_CYCLES = 600_000_000
_FAILED_S = 180.0
_MESSAGE_VALUES = 1 << 26
_ROUNDS = 5


def parity(rank: RankContext) -> list[str]:
    """Return what crossed NCCL and gloo differently."""
    precisions = {crossing: [torch.bfloat16] for crossing in CROSSINGS}
    precisions[CROSSINGS[0]] += [torch.float16, torch.float32]
    return [
        f"{crossing.name} {dtype}"
        for crossing, dtypes in precisions.items()
        for dtype in dtypes
        if not _same_by_gloo(rank, crossing, dtype)
    ]


def _same_by_gloo(rank: RankContext, crossing: Crossing, dtype: torch.dtype) -> bool:
    expected = cross(rank, crossing, _CPU, dtype, epoch=1)
    found = cross(rank, crossing, rank.device, dtype, epoch=1)
    rank.watchdog.check()
    return len(expected) == len(found) and all(
        torch.equal(a, b) for a, b in zip(expected, found, strict=True)
    )


def stream_order(rank: RankContext) -> tuple[bool, float, float]:
    """Send what is still being computed; change it after; use what arrives at once.

    Returns:
        Whether the host ran ahead of the GPU, and the smallest and largest value at the end.
    """
    transport = rank.transport("order/e1")
    rows = torch.full((1 << 20,), -1.0, device=rank.device)
    stream = torch.cuda.current_stream()
    stream.synchronize()
    rank.meet("order")
    torch.cuda.set_sync_debug_mode("error")
    if rank.place == 0:
        torch.cuda._sleep(_SLEEP_CYCLES)
        rows.fill_(7.0)
        transport.start([(1, rows)], [], 0)[0].wait()
        rows.fill_(9.0)
    else:
        transport.start([], [(0, rows)], 0)[1].wait()
        rows.mul_(2.0)
    ran_ahead = not stream.query()
    torch.cuda.set_sync_debug_mode("default")
    found = ran_ahead, float(rows.min()), float(rows.max())
    rank.watchdog.check()
    rank.meet("order is over")
    transport.close()
    return found


def steady_state(rank: RankContext) -> bool:
    """Carry a step with torch told to raise wherever the host would wait for the GPU."""
    crossing = next(c for c in CROSSINGS if c.name == "dp2 to tp2, shared")
    boundary = crossing.boundary
    communicator = open_communicator(rank, boundary, False, rank.device, torch.bfloat16, 1)
    parts = [part.forward for part in boundary.exchanges(crossing.plan, rank.place)]
    rows = [draw_rows(part, communicator, seed) for seed, part in enumerate(parts)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    for microbatch, (part, rows_TD) in enumerate(zip(parts, rows, strict=True)):
        communicator.launch(microbatch, part, rows_TD)
        communicator.finish(microbatch)
    communicator.drain()
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    rank.watchdog.check()
    rank.meet("step is over")
    communicator.close()
    return True


def hang(rank: RankContext) -> tuple[str, float, float]:
    """Wait for a message that a living peer never sends; then go on in a new epoch.

    Returns:
        On rank 1 the error and the seconds it took; on both what the new epoch brought.
    """
    rank.meet("start")
    transport = rank.transport("vision->language/forward/e1", deadline_s=HANG_S)
    text, took_s = "", 0.0
    if rank.place == 1:
        text, took_s = _wait_for_nothing(rank, transport)
        rank.store.set("failed", "1")
    else:
        rank.store.wait(["failed"], timedelta(seconds=_FAILED_S))
    transport.close()
    rank.watchdog = Watchdog()
    return text, took_s, _swap(rank, "vision->language/forward/e2")


def dead_peer(rank: RankContext) -> tuple[str, float]:
    """Wait for a message of a peer whose process ends."""
    rank.meet("start")
    transport = rank.transport("vision->language/forward/e1", deadline_s=HANG_S)
    rank.meet("joined")
    return _wait_for_nothing(rank, transport) if rank.place == 1 else ("", 0.0)


def _wait_for_nothing(rank: RankContext, transport: Transport) -> tuple[str, float]:
    rows = torch.zeros(1 << 20, device=rank.device)
    begin_s = time.monotonic()
    transport.start([], [(0, rows)], MICROBATCH)[1].wait()
    with contextlib.suppress(RuntimeError):  # a GPU may also report what the peer's end broke
        torch.cuda.current_stream().synchronize()
    took_s = time.monotonic() - begin_s
    try:
        rank.watchdog.check()
    except BoundaryError as error:
        return str(error), took_s
    return "", took_s


def _swap(rank: RankContext, name: str) -> float:
    """Exchange a value with the other rank; return what came."""
    transport = rank.transport(name)
    other = 1 - rank.place
    mine = torch.full((1 << 20,), 10.0 + rank.place, device=rank.device)
    theirs = torch.zeros_like(mine)
    _settle(transport, [(other, mine)], [(other, theirs)])
    rank.watchdog.check()
    rank.meet(f"swapped {name}")
    transport.close()
    return float(theirs.min())


def rebuild(rank: RankContext) -> float:
    """Leave a message behind that nobody takes; return what the next epoch brings."""
    transport = rank.transport("wire/e1")
    stale = torch.full((1 << 22,), -5.0, device=rank.device)
    if rank.place == 0:
        transport.start([(1, stale)], [], 0)
    rank.meet("stale message is on its way")
    transport.close()
    return _swap(rank, "wire/e2")


def bandwidth(rank: RankContext) -> tuple[float, float]:
    """Return the GB/s of messages to the other rank, and of copies on this GPU alone."""
    transport = rank.transport("bandwidth/e1")
    rows = torch.zeros(_MESSAGE_VALUES, dtype=torch.bfloat16, device=rank.device)
    copied = torch.empty_like(rows)

    def exchange() -> None:
        if rank.place == 0:
            transport.start([(1, rows)], [], 0)[0].wait()
        else:
            transport.start([], [(0, rows)], 0)[1].wait()

    rank.meet("messages")
    messages = _gigabytes_per_s(exchange, rows)
    rank.meet("copies")
    copies = _gigabytes_per_s(lambda: copied.copy_(rows), rows) if rank.place == 0 else 0.0
    rank.meet("measured")
    rank.watchdog.check()
    transport.close()
    return messages, copies


def _gigabytes_per_s(move: Callable[[], object], rows: Tensor) -> float:
    move()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(_ROUNDS):
        move()
    end.record()
    end.synchronize()
    seconds = begin.elapsed_time(end) / 1e3
    return _ROUNDS * rows.numel() * rows.itemsize / seconds / 1e9


def _settle(transport: Transport, sends: Sequence[Message], receives: Sequence[Message]) -> None:
    for pending in transport.start(sends, receives, 0):
        pending.wait()
    torch.cuda.current_stream().synchronize()
