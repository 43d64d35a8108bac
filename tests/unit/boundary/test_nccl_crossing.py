"""Boundaries cross the GPU transport as they cross gloo, over a fake NCCL without tags."""

from collections.abc import Sequence

import pytest
import torch
from torch.distributed import TCPStore

from disagg_train.boundary.nccl import NcclGroup
from disagg_train.boundary.nccl_transport import NcclTransport
from disagg_train.boundary.transport import Transport
from tests.gpu.crossing import CROSSINGS, NUM_RANKS, Crossing, cross
from tests.gpu.ranks import RankContext
from tests.unit.boundary.fake_nccl import install
from tests.unit.boundary.gloo_ranks import on_each_rank

_CPU = torch.device("cpu")
_DEADLINE_S = 20.0


class _OverNccl(RankContext):
    def transport(
        self, name: str, places: Sequence[int] | None = None, *_: object, **__: object
    ) -> Transport:
        members = range(self.num_ranks) if places is None else places
        return NcclTransport(
            NcclGroup(name, self.store, members, self.place, _CPU, _DEADLINE_S, self.watchdog)
        )


def _crossed(rank_class: type[RankContext], crossing: Crossing) -> list[list[torch.Tensor]]:
    def run(place: int, store: TCPStore) -> list[torch.Tensor]:
        rank = rank_class(place, NUM_RANKS, store, _CPU)
        return cross(rank, crossing, _CPU, torch.bfloat16, epoch=1)

    return on_each_rank(range(NUM_RANKS), run)


@pytest.mark.parametrize("crossing", CROSSINGS, ids=lambda crossing: crossing.name)
def test_nccl_brings_what_gloo_brings(crossing: Crossing, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    by_gloo, by_nccl = _crossed(RankContext, crossing), _crossed(_OverNccl, crossing)
    assert any(rows.any() for arrived in by_gloo for rows in arrived)
    for expected, found in zip(by_gloo, by_nccl, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
