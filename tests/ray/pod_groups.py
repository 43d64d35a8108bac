"""Groups on the nodes that were made for them: run as a program, in a Ray of several nodes.

Prints the label of the nodes that each group's ranks are placed on.
"""

import json
import os
import sys

os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}

import ray
from ray.cluster_utils import Cluster as Nodes
from ray.util.placement_group import placement_group_table

from actors.cluster import Cluster
from actors.resources import rank_resources
from disagg_train.config.load import load_job
from disagg_train.kube.pods import GROUP_LABEL
from tests.unit.config.jobs import JOB

MADE_FOR = {"language": 6, "encoders": 2}
"""CPUs of each group's node: the first one has room for all ranks."""


def main(folder: str) -> None:
    """Place a job on two nodes."""
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": folder})
    try:
        for group, cpus in MADE_FOR.items():
            nodes.add_node(num_cpus=cpus, labels={GROUP_LABEL: group})
        ray.init(address=nodes.address, log_to_driver=False)
        print(json.dumps(placed()))
    finally:
        ray.shutdown()
        nodes.shutdown()


def placed() -> dict[str, list[str]]:
    """Return the label of each bundle's node, by group."""
    job = load_job(JOB)
    resources, _ = rank_resources(job, ray.cluster_resources())
    cluster = Cluster(job, resources)
    label_of = {node["NodeID"]: node["Labels"].get(GROUP_LABEL, "") for node in ray.nodes()}
    return {
        name: [
            label_of[node]
            for node in placement_group_table(placed.group)["bundles_to_node_id"].values()
        ]
        for name, placed in cluster._placed.items()
    }


if __name__ == "__main__":
    main(sys.argv[1])
