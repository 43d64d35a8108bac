"""The face of CPU and CUDA: inert where there is no GPU, plain where something is too old."""

import time

import pytest
import torch

from disagg_train.device import Clock, Device, SideStream, check_gpu_sharing
from disagg_train.errors import ConfigError


def test_a_side_stream_is_inert_on_a_cpu() -> None:
    stream = SideStream(torch.device("cpu"))
    stream.follow()
    stream.keep(torch.ones(1))
    stream.hold_back_current(stream.mark())
    stream.finish()
    assert stream.handle == 0
    assert stream.mark().query() and stream.mark_current().query()


def test_sharing_a_gpu_needs_a_recent_nccl() -> None:
    with pytest.raises(ConfigError, match=r"gpus_per_rank=0.25.*2\.30.*2\.28\.9.*gpus_per_rank: 1"):
        check_gpu_sharing(0.25, (2, 28, 9))
    check_gpu_sharing(0.25, (2, 30, 7))
    check_gpu_sharing(1.0, (2, 21, 5))


def test_on_a_cpu_a_moment_is_when_the_host_came_to_it() -> None:
    clock = Clock(Device("cpu"))
    before, begin, after = time.time(), clock.now(), clock.now()
    clock.settle()
    assert before <= clock.seconds(begin) <= clock.seconds(after) <= time.time()
