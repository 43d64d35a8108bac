"""One rank of the boundary benchmark: times all contestants in turn."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from time import perf_counter

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore

from disagg_train.bench.case import BoundaryCase
from disagg_train.bench.contestants import Contestant, Ours, RawMessages
from disagg_train.bench.megatron_bridge import MegatronBridge, MegatronRefusalError

_WARM_UP_ROUNDS = 3


@dataclass(frozen=True)
class BoundarySetup:
    """What a rank is told.

    Args:
        case: what is measured.
        port: of the store on this machine.
        place: the rank.
        deadline_s: of any wait.
    """

    case: BoundaryCase
    port: int
    place: int
    deadline_s: float


@dataclass(frozen=True)
class BoundaryTimes:
    """What a rank measured.

    Args:
        samples_s: per contestant and direction (``ours_forward``), one time per round: the
            slowest rank's, the same on every rank.
        sent_bytes: bytes that this rank sends across in one forward and one backward.
        received_bytes: bytes that it receives across, likewise.
        megatron_refusal: why Megatron's bridge took no part, in its words; empty if it did.
    """

    samples_s: Mapping[str, list[float]]
    sent_bytes: tuple[int, int]
    received_bytes: tuple[int, int]
    megatron_refusal: str


class BoundaryRank:
    """Joins the others and measures."""

    def __init__(self, setup: BoundarySetup) -> None:
        torch.set_num_threads(1)
        case, place, timeout = setup.case, setup.place, timedelta(seconds=setup.deadline_s)
        store = TCPStore("127.0.0.1", setup.port, is_master=False, timeout=timeout)
        world = PrefixStore("world", store)
        dist.init_process_group(
            "gloo", store=world, rank=place, world_size=case.num_ranks, timeout=timeout
        )
        self._ours = Ours(case, store, place, setup.deadline_s)
        self._contestants: dict[str, Contestant] = {
            "ours": self._ours,
            "raw": RawMessages(case, place),
        }
        self._megatron_refusal = ""
        try:
            self._contestants["megatron"] = MegatronBridge(case, place)
        except MegatronRefusalError as refusal:
            self._megatron_refusal = str(refusal)

    def run(self, count: int) -> BoundaryTimes:
        """Check that rows arrive, warm up, then time ``count`` rounds."""
        self._ours.check()
        for turn in range(_WARM_UP_ROUNDS):
            self._round(turn)
        sent_bytes = self._sent_bytes()
        samples_s: dict[str, list[float]] = {}
        for turn in range(count):
            for name, elapsed_s in self._round(turn).items():
                samples_s.setdefault(name, []).append(elapsed_s)
        received_bytes = self._ours.received_bytes
        return BoundaryTimes(samples_s, sent_bytes, received_bytes, self._megatron_refusal)

    def _round(self, turn: int) -> dict[str, float]:
        """Time everybody once, forwards and backwards in turn: nobody always follows another.

        Who went before decides what is in the caches and how the heap looks.
        """
        times_s = {}
        contestants = list(self._contestants.items())
        for name, contestant in contestants if turn % 2 == 0 else reversed(contestants):
            times_s[f"{name}_forward"] = _timed(contestant.forward)
            times_s[f"{name}_backward"] = _timed(contestant.backward)
        return times_s

    def _sent_bytes(self) -> tuple[int, int]:
        """Return what one exchange of each direction sends, by the communicators' counters."""
        counters = self._ours.activations, self._ours.gradients
        for counter in counters:
            counter.take_sent_bytes()
        self._ours.forward()
        self._ours.backward()
        return counters[0].take_sent_bytes(), counters[1].take_sent_bytes()

    def close(self) -> None:
        """Leave all groups."""
        self._ours.close()
        dist.destroy_process_group()


def _timed(action: Callable[[], None]) -> float:
    """Return the slowest rank's seconds, from a common start."""
    dist.barrier()
    begin_s = perf_counter()
    action()
    elapsed_s = torch.tensor([perf_counter() - begin_s], dtype=torch.float64)
    dist.all_reduce(elapsed_s, dist.ReduceOp.MAX)
    return float(elapsed_s)
