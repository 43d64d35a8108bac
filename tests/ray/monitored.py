"""Trains on a running Ray whose metrics Prometheus scrapes; run as a program, for its output.

Beside the run it shows the MFU of another one, on GPUs, which this machine need not have.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import ray

from actors.gauges import RayMetrics
from disagg_train import cli
from tests.unit.metrics.steps import measures

ON_GPUS = "on-gpus"


_START_S, _POLL_S = 90.0, 0.2


def main(folder: Path) -> int:
    address = _address(folder / "ray" / "ray_current_cluster")
    ray.init(address=address, log_to_driver=False)
    RayMetrics(ON_GPUS).add_step(replace(measures(0), mfu=0.4))
    try:
        return cli.main(["train", str(folder / "job.yaml"), "--address", address])
    finally:
        ray.shutdown()


def _address(file: Path) -> str:
    """Return the address that a starting head writes; ``auto`` may find another one's."""
    until_s = time.monotonic() + _START_S
    while not file.exists():
        assert time.monotonic() < until_s, f"no {file}"
        time.sleep(_POLL_S)
    return file.read_text()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
