"""Trains on a running Ray whose metrics Prometheus scrapes; run as a program, for its output.

Beside the run it shows the MFU of another one, on GPUs, which this machine need not have.
"""

import sys
from dataclasses import replace
from pathlib import Path

import ray

from actors.gauges import RayMetrics
from disagg_train import cli
from tests.unit.metrics.steps import measures

ON_GPUS = "on-gpus"


def main(folder: Path) -> int:
    ray.init(address="auto", log_to_driver=False)
    RayMetrics(ON_GPUS).add_step(replace(measures(0), mfu=0.4))
    try:
        return cli.main(["train", str(folder / "job.yaml"), "--address", "auto"])
    finally:
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
