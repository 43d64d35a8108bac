"""Nodes are lost under a session: run as a program, since it needs a Ray of several nodes.

The first lost node finds a replacement, the second one none: then its group goes on smaller.
"""

import os
import sys
import time
from typing import Any

os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}

import pytest
import ray
from ray.cluster_utils import Cluster

from actors.session import LostCapacity, Session, on_cluster
from disagg_train.config.resize import shrunk
from tests.ray.jobs import job_with
from tests.ray.test_recovery import copy_to_vaults, fail, losses, process_ids, train

JOB = job_with(
    "train.steps=8", "recovery.replacement_s=40", "deadlines.exchange_s=60", "device=cpu"
)
QUICKLY = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}


def main(folder: str) -> None:
    head = {"num_cpus": 0, "temp_dir": folder, "_system_config": QUICKLY}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = {}
        for _ in range(2):
            node = cluster.add_node(num_cpus=2)
            nodes[node.node_id] = node
        ray.init(address=cluster.address, log_to_driver=False)
        with on_cluster(JOB, keeps_copies=True) as session:
            lose_nodes(session, cluster, nodes)
    finally:
        ray.shutdown()
        cluster.shutdown()


def lose_nodes(session: Session, cluster: Cluster, nodes: dict[str, Any]) -> None:
    train(session, 0, 2)
    copy_to_vaults(session, 2)
    undisturbed = train(session, 2, 5)
    before = process_ids(session)

    spare = cluster.add_node(num_cpus=2)
    cluster.remove_node(node_of(session, "encoders", nodes), allow_graceful=False)
    failure = fail(session, 5)
    assert failure.groups == ("encoders",), failure.text
    begin_s = time.monotonic()
    session.renew(JOB, failure.groups, session.newest_copy())
    print("renewed on a spare node in", time.monotonic() - begin_s)
    assert {home.node_id for home in session.groups[0].homes} == {spare.node_id}
    assert losses(train(session, 2, 5)) == losses(undisturbed)
    after = process_ids(session)
    assert all(after["language", rank] == before["language", rank] for rank in range(2))

    copy_to_vaults(session, 5)
    undisturbed = train(session, 5, 7)
    cluster.add_node(num_cpus=1)
    cluster.remove_node(spare, allow_graceful=False)
    failure = fail(session, 7)
    assert failure.groups == ("encoders",), failure.text
    source = session.newest_copy()
    assert source is not None and source.steps_done == 5
    with pytest.raises(LostCapacity) as lost:
        session.renew(JOB, failure.groups, source)
    assert (lost.value.group, lost.value.ranks) == ("encoders", 1)
    smaller = shrunk(JOB, "encoders", lost.value.ranks)
    assert smaller is not None
    session.renew(smaller, failure.groups, source)
    assert [len(group.actors) for group in session.groups] == [1, 2]
    found = train(session, 5, 7)
    assert [r.loss for r in found] == pytest.approx([r.loss for r in undisturbed], rel=1e-5)
    copy_to_vaults(session, 7)
    newest = session.newest_copy()
    assert newest is not None and newest.steps_done == 7


def node_of(session: Session, group: str, nodes: dict[str, Any]) -> Any:
    homes = next(each for each in session.groups if each.name == group).homes
    assert len({home.node_id for home in homes}) == 1
    return nodes[homes[0].node_id]


if __name__ == "__main__":
    main(sys.argv[1])
