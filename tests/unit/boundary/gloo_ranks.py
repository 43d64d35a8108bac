"""Several gloo ranks in one process, a thread each: enough to test what crosses between them."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from torch.distributed import TCPStore

from disagg_train.boundary.gloo import GlooGroup

Found = TypeVar("Found")
_DEADLINE_S = 20.0


def on_each_rank[Found](
    places: Sequence[int], run: Callable[[int, TCPStore], Found], deadline_s: float = 60.0
) -> list[Found]:
    """Run ``run(place, store)`` on a thread per place; return what they return, in order."""
    host = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def one(place: int) -> Found:
        return run(place, TCPStore("127.0.0.1", host.port, is_master=False))

    with ThreadPoolExecutor(len(places)) as threads:
        return list(threads.map(one, places, timeout=deadline_s))


def join(name: str, store: TCPStore, places: Sequence[int], place: int) -> GlooGroup:
    """Join a group with a deadline that a test can live with."""
    return GlooGroup(name, store, places, place, _DEADLINE_S)
