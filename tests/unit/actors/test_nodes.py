"""Which nodes a group is placed on, where Kubernetes made pods for each."""

from typing import Any

from actors.nodes import Node, live_nodes, num_fitting, with_group_label
from disagg_train.kube.pods import GROUP_LABEL
from tests.unit.kube.jobs import cluster_of, objects

_BUNDLE = {"GPU": 1.0, "CPU": 1.0}


def _node(group: str, gpus: float, **more: str) -> Node:
    resources = {"GPU": gpus, "CPU": gpus}
    return Node("10.0.0.1", {GROUP_LABEL: group, **more}, resources, resources)


def _own(group: str, bundles: int, nodes: list[Node], **labels: str) -> dict[str, str]:
    return with_group_label(group, labels, bundles, _BUNDLE, nodes)


def test_a_group_goes_to_the_pods_that_were_made_for_it() -> None:
    labels = [each["labels"] for each in cluster_of(objects()[1])["workerGroupSpecs"]]
    nodes = [
        Node("b", labels[1], {"GPU": 4.0, "CPU": 4.0}),
        Node("a", labels[0], {"GPU": 2.0, "CPU": 2.0}),
    ]
    assert _own("encoders", 2, nodes) == labels[0]
    assert _own("language", 4, nodes) == labels[1]


def test_pods_of_a_group_count_together() -> None:
    nodes = [_node("language", 2.0), _node("language", 2.0), _node("encoders", 2.0)]
    assert _own("language", 4, nodes) == {GROUP_LABEL: "language"}


def test_a_group_that_its_pods_have_no_room_for_goes_anywhere() -> None:
    nodes = [_node("language", 2.0), _node("encoders", 2.0)]
    assert _own("language", 4, nodes) == {}


def test_labels_of_the_job_hold_together_with_that_of_the_pods() -> None:
    nodes = [_node("language", 4.0, pool="big"), _node("language", 4.0, pool="small")]
    assert _own("language", 4, nodes, pool="big") == {GROUP_LABEL: "language", "pool": "big"}
    assert _own("language", 5, nodes, pool="big") == {"pool": "big"}


def test_elsewhere_than_on_kubernetes_any_node_will_do() -> None:
    assert _own("language", 1, [Node("a", {}, _BUNDLE)]) == {}


def test_ranks_that_share_gpus_need_fewer_of_them() -> None:
    assert num_fitting({"GPU": 1.0, "CPU": 1.0}, {"GPU": 0.25, "CPU": 0.1}) == 4


def test_only_nodes_that_live_count_with_what_is_free_of_them() -> None:
    listed: list[dict[str, Any]] = [
        {"NodeID": "1", "Alive": True, "Resources": {"CPU": 2.0}, "NodeManagerAddress": "a"},
        {"NodeID": "2", "Alive": False, "Resources": {}, "Labels": {"pool": "x"}},
    ]
    assert live_nodes(listed, {"1": {"CPU": 1.0}}) == [Node("a", {}, {"CPU": 2.0}, {"CPU": 1.0})]
