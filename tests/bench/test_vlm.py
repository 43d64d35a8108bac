"""A whole vision-language model against plain transformers; the bar is for a GPU."""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.bench


def _bench_vlm(*options: str) -> dict[str, Any]:
    """Measure in a process of its own: it holds process groups, and Megatron's settings."""
    command = [sys.executable, "-m", "disagg_train.cli", "bench", "vlm", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_both_contestants_train_small_sizes_on_a_cpu() -> None:
    result = _bench_vlm("--tiny", "--precision", "fp32", "--blocks", "1")
    assert result["tokens_per_s"]["ours"] > 0 and result["tokens_per_s"]["transformers"] > 0
    assert result["precision"] == "fp32"


@pytest.mark.gpu
@pytest.mark.timeout(1500)
def test_tokens_per_s_beat_plain_transformers_on_a_gpu(keep) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    result = _bench_vlm()
    keep("vlm", result)
    assert result["tokens_per_s"]["ours"] > result["tokens_per_s"]["transformers"]
