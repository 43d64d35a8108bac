"""What these tests need: a GPU, CuPy with torch's NCCL, and room for several ranks."""

from collections.abc import Callable

import pytest
import torch

from tests.gpu.ranks import SHARED_GPU_NCCL, Run, on_ranks


@pytest.fixture(autouse=True)
def _gpu_and_cupy() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    pytest.importorskip("cupy", reason="no CuPy: pip install 'disagg_train[cu13]'")


@pytest.fixture
def spawn(_gpu_and_cupy: None) -> Callable[..., list[object]]:
    """Run a function on so many ranks, on one GPU where there are no more."""

    def run(what: Run, num_ranks: int, deadline_s: float = 240.0) -> list[object]:
        gpus, version = torch.cuda.device_count(), torch.cuda.nccl.version()[:2]
        if gpus < num_ranks and version < SHARED_GPU_NCCL:
            pytest.skip(f"{num_ranks} ranks on {gpus} GPUs need NCCL 2.30, torch has {version}")
        return on_ranks(what, num_ranks, deadline_s)

    return run
