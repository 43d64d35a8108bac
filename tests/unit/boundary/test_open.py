"""The device chooses the transport, and a rank alone on a GPU needs no CuPy."""

import sys

import pytest
import torch
from torch.distributed import TCPStore

from disagg_train.boundary.gloo import GlooTransport
from disagg_train.boundary.open import open_transport
from disagg_train.boundary.transport import Transport
from disagg_train.boundary.watchdog import Watchdog
from disagg_train.errors import ConfigError


def _open(device: str, places: tuple[int, ...]) -> Transport:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return open_transport("wire/e1", store, places, 0, torch.device(device), 1.0, Watchdog())


@pytest.fixture(autouse=True)
def _no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cupy", "cupy.cuda", "cupy.cuda.nccl"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_rank_alone_joins_anywhere(device: str) -> None:
    assert isinstance(_open(device, (0,)), GlooTransport)


def test_ranks_on_gpus_need_cupy() -> None:
    with pytest.raises(ConfigError, match="need CuPy's NCCL"):
        _open("cuda", (0, 1))
