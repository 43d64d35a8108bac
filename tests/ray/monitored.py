"""Trains under a Ray whose metrics Prometheus may scrape; run as a program, for its output.

Beside the run it shows the MFU of another one, on GPUs, which this machine need not have.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ |= {
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",
    "RAY_metrics_report_interval_ms": "1000",
}

import ray

from actors.gauges import RayMetrics
from disagg_train import cli
from tests.unit.metrics.steps import measures

ON_GPUS = "on-gpus"


def main(folder: Path, metrics_port: int) -> int:
    ray.init(
        num_cpus=4,
        include_dashboard=True,
        log_to_driver=False,
        _temp_dir=str(folder / "ray"),
        _node_ip_address="127.0.0.1",
        _metrics_export_port=metrics_port,
    )
    RayMetrics(ON_GPUS).add_step(replace(measures(0), mfu=0.4))
    try:
        return cli.main(["train", str(folder / "job.yaml")])
    finally:
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
