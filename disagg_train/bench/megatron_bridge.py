"""megatron-core's boundary between disjoint grids, as it is released, on gloo and CPUs.

Nothing of it is changed but the backend's name. Its debug messages are part of its time:
they are formatted, sums of tensors included, whether or not anybody reads them.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from disagg_train.bench.case import BoundaryCase
from disagg_train.config.modules import ParallelConfig
from disagg_train.modules import cpu


class MegatronRefusalError(Exception):
    """Megatron does not connect two layouts; the message is its own."""


class MegatronBridge:
    """``BridgeCommunicator`` on one rank.

    Sequence parallelism at the destination does not exist for it: every tp rank gets the
    whole tensor, and the caller would cut it.

    Args:
        case: what is measured; its ranks are those of the default process group.
        place: this rank.

    Raises:
        MegatronRefusalError: the pair is not supported, which every rank learns alike.
    """

    def __init__(self, case: BoundaryCase, place: int) -> None:
        cpu.install()
        from megatron.core.pipeline_parallel.bridge_communicator import BridgeCommunicator

        self._is_source = place < case.source.num_ranks
        mine = case.source if self._is_source else case.destination
        self._rows_TD = torch.ones(case.num_tokens // mine.dp, case.hidden_size)
        try:
            with _gloo_in_place_of_nccl():
                self._bridge = BridgeCommunicator(
                    _grid(case.source, 0),
                    _grid(case.destination, case.source.num_ranks),
                    comm_dtype=torch.float32,
                    tensor_ndim=2,
                )
        except (AssertionError, ValueError) as error:
            raise MegatronRefusalError(str(error)) from None

    def forward(self) -> None:
        """Leader to leader, then a broadcast over the destination's tp ranks."""
        if self._is_source:
            self._bridge.send_forward(self._rows_TD)
        else:
            self._bridge.recv_forward()

    def backward(self) -> None:
        """Leader to leader, then a broadcast over the source's tp ranks."""
        if self._is_source:
            self._bridge.recv_backward()
        else:
            self._bridge.send_backward(self._rows_TD)


def _grid(parallel: ParallelConfig, first_rank: int) -> Any:
    from megatron.core.hyper_comm_grid import HyperCommGrid

    shape = [parallel.tp, parallel.cp, parallel.dp, parallel.pp]
    return HyperCommGrid(shape, ["tp", "cp", "dp", "pp"], rank_offset=first_rank, backend="gloo")


@contextlib.contextmanager
def _gloo_in_place_of_nccl() -> Iterator[None]:
    """Make the groups that name ``nccl`` on gloo."""
    originals = {
        name: getattr(dist, name) for name in ("new_group", "new_subgroups_by_enumeration")
    }
    for name, original in originals.items():
        setattr(dist, name, _on_gloo(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def _on_gloo(make: Callable[..., Any]) -> Callable[..., Any]:
    def made(*args: Any, **kwargs: Any) -> Any:
        return make(*args, **{**kwargs, "backend": "gloo"})

    return made
