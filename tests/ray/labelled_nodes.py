"""Groups on labelled nodes of odd sizes: run as a program, since it needs a Ray of several nodes.

A node is waited for, comes, and is lost again while the job trains.
"""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}

import pytest
import ray
from ray.cluster_utils import Cluster as Nodes

from actors.cluster import Cluster
from actors.group import ActorGroup
from actors.resources import rank_resources
from actors.session import Session, on_cluster
from disagg_train.config.job import JobConfig
from disagg_train.errors import ClusterError
from tests.ray.jobs import job_with
from tests.ray.node_loss import QUICKLY
from tests.ray.test_recovery import copy_to_vaults, fail, losses, process_ids, train

PLACED = (
    "groups.encoders.labels={pool: encoder}",
    "groups.encoders.strategy=spread",
    "groups.language.labels={pool: language}",
    "environment={DT_TEST_OF: job, DT_TEST_ALL: 7}",
    "groups.encoders.environment={DT_TEST_OF: encoders}",
    "recovery.replacement_s=90",
    "device=cpu",
)
TRAINED = job_with(*PLACED, "train.steps=6", "deadlines.exchange_s=60")
WIDE = job_with(*PLACED, "groups.language.ranks=4", "modules.language.parallel.dp=2")
WAIT_S = 120.0


class Labelled:
    """A head without room, two nodes of three CPUs for the LLM, and one of one for encoders."""

    def __init__(self, folder: str) -> None:
        head = {"num_cpus": 0, "temp_dir": folder, "_system_config": QUICKLY}
        self._nodes = Nodes(initialize_head=True, head_node_args=head)
        self._of_id: dict[str, Any] = {}
        for cpus, pool in ((3, "language"), (3, "language"), (1, "encoder")):
            self.add(cpus, pool)
        ray.init(address=self._nodes.address, log_to_driver=False)

    def add(self, cpus: int, pool: str) -> str:
        node = self._nodes.add_node(num_cpus=cpus, labels={"pool": pool})
        self._of_id[node.node_id] = node
        return str(node.node_id)

    def remove(self, node_id: str) -> None:
        self._nodes.remove_node(self._of_id.pop(node_id), allow_graceful=False)

    def close(self) -> None:
        ray.shutdown()
        self._nodes.shutdown()


def main(folder: str) -> None:
    nodes = Labelled(folder)
    try:
        begin_s = time.monotonic()
        tell_what_is_missing()
        print("told at", time.monotonic() - begin_s)
        added = wait_for_a_node(nodes)
        print("placed at", time.monotonic() - begin_s)
        with on_cluster(TRAINED, keeps_copies=True) as session:
            check_labels(session.groups)
            lose_a_node(nodes, session, added)
        print("recovered at", time.monotonic() - begin_s)
    finally:
        nodes.close()


def placed(job: JobConfig) -> Cluster:
    return Cluster(job, rank_resources(job, ray.cluster_resources())[0])


def tell_what_is_missing() -> None:
    """There is one node for encoders; the message says so, and what the others are."""
    deadlines = WIDE.deadlines.model_copy(update={"placement_s": 1.0})
    with pytest.raises(ClusterError) as caught:
        placed(WIDE.model_copy(update={"deadlines": deadlines}))
    print(caught.value)
    text = str(caught.value)
    assert "with the labels pool=encoder has room for its bundle 2 of 2" in text
    assert "1 of 1 CPU free; labels pool=encoder" in text
    assert text.count("CPU free; labels pool=language") == 2


def wait_for_a_node(nodes: Labelled) -> str:
    """The job waits, a node comes, and all is placed as the job file says; return the node."""
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(placed, WIDE)
        added = nodes.add(1, "encoder")
        cluster = waiting.result(WAIT_S)
    groups = cluster.start({name: group.ranks for name, group in WIDE.groups.items()}, WAIT_S)
    check_labels(list(groups.values()))
    check_environments(groups)
    homes = [home.node_id for home in groups["language"].homes]
    assert homes[0] == homes[1] != homes[2] == homes[3], "tp groups are whole, one per node"
    assert added in {home.node_id for home in groups["encoders"].homes}
    cluster.release(groups, sound=True)
    return added


def check_labels(groups: list[ActorGroup]) -> None:
    pool_of = {node["NodeID"]: node["Labels"].get("pool") for node in ray.nodes()}
    for group in groups:
        pools = {pool_of[home.node_id] for home in group.homes}
        assert pools == {"encoder" if group.name == "encoders" else "language"}
    assert len({home.node_id for g in groups if g.name == "encoders" for home in g.homes}) == 2


def check_environments(groups: dict[str, ActorGroup]) -> None:
    for name, group in groups.items():
        seen = [actor.__ray_call__.remote(_environment) for actor in group.actors]
        of = "encoders" if name == "encoders" else "job"
        assert ray.get(seen, timeout=WAIT_S) == [(of, "7")] * len(group.actors)


def _environment(actor: object) -> tuple[str | None, str | None]:
    del actor
    return os.environ.get("DT_TEST_OF"), os.environ.get("DT_TEST_ALL")


def lose_a_node(nodes: Labelled, session: Session, lost: str) -> None:
    """Training goes on with the new node in the lost one's place, and every rank where it was."""
    train(session, 0, 2)
    copy_to_vaults(session, 2)
    undisturbed, before = train(session, 2, 4), process_ids(session)
    homes = [home.node_id for home in session.groups[0].homes]
    spare = nodes.add(1, "encoder")
    nodes.remove(lost)
    failure = fail(session, 4)
    assert failure.groups == ("encoders",), failure.text
    session.renew(session.job, failure.groups, session.newest_copy())
    check_labels(session.groups)
    expected = [spare if node == lost else node for node in homes]
    assert [home.node_id for home in session.groups[0].homes] == expected
    assert losses(train(session, 2, 4)) == losses(undisturbed)
    after = process_ids(session)
    assert all(after["language", rank] == before["language", rank] for rank in range(2))


if __name__ == "__main__":
    main(sys.argv[1])
