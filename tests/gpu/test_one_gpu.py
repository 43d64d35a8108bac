"""What one GPU and one process can show: versions, streams, and rows that stay where they are."""

import pytest
import torch
from torch.distributed import TCPStore

from disagg_train.boundary.nccl import check_same_nccl
from disagg_train.device import Clock, Device, SideStream
from disagg_train.topology.grid import Grid
from tests.gpu.crossing import Crossing, cross
from tests.gpu.ranks import RankContext

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(180)]

_SLEEP_CYCLES = 2_000_000_000
_ALONE = Crossing("one rank, shared", Grid(), Grid(), shared=True)


def _rank() -> RankContext:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return RankContext(0, 1, store, torch.device("cuda", 0))


def test_cupy_and_torch_hold_the_same_nccl() -> None:
    check_same_nccl()


def test_the_side_stream_does_not_hold_compute_up() -> None:
    device = torch.device("cuda", 0)
    side = SideStream(device)
    rows = torch.ones(256, 256, device=device)
    _ = rows @ rows
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.ExternalStream(side.handle, device=device)):
        torch.cuda._sleep(_SLEEP_CYCLES)
    slow = side.mark()
    total = (rows @ rows).sum()
    torch.cuda.current_stream(device).synchronize()
    assert not slow.query()
    side.finish()
    assert slow.query()
    assert float(total) == 256.0**3


def test_the_current_stream_waits_for_a_mark_of_the_side_stream() -> None:
    device = torch.device("cuda", 0)
    side = SideStream(device)
    rows = torch.zeros(1 << 20, device=device)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.ExternalStream(side.handle, device=device)):
        torch.cuda._sleep(_SLEEP_CYCLES // 10)
        rows.fill_(3.0)
    side.hold_back_current(side.mark())
    assert float(rows.mul(2.0).min()) == 6.0


def test_the_clock_tells_when_the_gpu_ran_and_not_when_the_host_launched() -> None:
    clock = Clock(Device("cuda", 0))
    clock.settle()
    begin = clock.now()
    torch.cuda._sleep(_SLEEP_CYCLES // 10)
    between = clock.now()
    torch.cuda._sleep(_SLEEP_CYCLES // 10)
    end = clock.now()
    launched_s = end.host_s - begin.host_s
    assert clock.seconds(end) == end.host_s, "the GPU may not have come to it yet"
    clock.settle()
    first_s = clock.seconds(between) - clock.seconds(begin)
    second_s = clock.seconds(end) - clock.seconds(between)
    assert first_s == pytest.approx(second_s, rel=0.1)
    assert first_s > 10 * launched_s
    assert clock.seconds(begin) == pytest.approx(begin.host_s, abs=0.005)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_that_stay_on_a_gpu_arrive_as_on_a_cpu(dtype: torch.dtype) -> None:
    rank = _rank()
    expected = cross(rank, _ALONE, torch.device("cpu"), dtype, epoch=1)
    found = cross(rank, _ALONE, rank.device, dtype, epoch=1)
    assert any(rows.any() for rows in expected)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    rank.watchdog.close()
