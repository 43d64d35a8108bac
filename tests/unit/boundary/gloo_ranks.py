"""Several gloo ranks in one process, a thread each: enough to test what crosses between them."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from torch.distributed import HashStore, Store

from disagg_train.boundary.gloo import GlooGroup

Found = TypeVar("Found")
_DEADLINE_S = 20.0


def on_each_rank[Found](
    places: Sequence[int], run: Callable[[int, Store], Found], deadline_s: float = 60.0
) -> list[Found]:
    """Run ``run(place, store)`` on a thread per place; return what they return, in order.

    The store is in this process's memory: clients of a TCP store now and then take seconds.
    """
    store = HashStore()
    with ThreadPoolExecutor(len(places)) as threads:
        return list(threads.map(run, places, [store] * len(places), timeout=deadline_s))


def join(name: str, store: Store, places: Sequence[int], place: int) -> GlooGroup:
    """Join a group with a deadline that a test can live with."""
    return GlooGroup(name, store, places, place, _DEADLINE_S)
