"""Which nodes a group is placed on, where Kubernetes made pods for each."""

from typing import Any

from actors.pod_nodes import selector
from disagg_train.kube.pods import GROUP_LABEL
from tests.unit.kube.jobs import cluster_of, objects

_BUNDLE = {"GPU": 1.0, "CPU": 1.0}


def _node(group: str, gpus: float, alive: bool = True) -> dict[str, Any]:
    resources = {"GPU": gpus, "CPU": gpus} if alive else {}
    return {"Alive": alive, "Resources": resources, "Labels": {GROUP_LABEL: group}}


def test_a_group_goes_to_the_pods_that_were_made_for_it() -> None:
    labels = [each["labels"] for each in cluster_of(objects()[1])["workerGroupSpecs"]]
    nodes = [
        {"Alive": True, "Resources": {"GPU": 4.0, "CPU": 4.0}, "Labels": labels[1]},
        {"Alive": True, "Resources": {"GPU": 2.0, "CPU": 2.0}, "Labels": labels[0]},
    ]
    assert selector("encoders", 2, _BUNDLE, nodes) == labels[0]
    assert selector("language", 4, _BUNDLE, nodes) == labels[1]


def test_pods_of_a_group_count_together() -> None:
    nodes = [_node("language", 2.0), _node("language", 2.0), _node("encoders", 2.0)]
    assert selector("language", 4, _BUNDLE, nodes) == {GROUP_LABEL: "language"}


def test_a_group_that_its_pods_have_no_room_for_goes_anywhere() -> None:
    nodes = [_node("language", 2.0), _node("language", 2.0, alive=False), _node("encoders", 2.0)]
    assert selector("language", 4, _BUNDLE, nodes) == {}


def test_ranks_that_share_gpus_need_fewer_of_them() -> None:
    assert selector("language", 4, {"GPU": 0.25, "CPU": 0.1}, [_node("language", 1.0)])


def test_elsewhere_than_on_kubernetes_any_node_will_do() -> None:
    assert selector("language", 1, _BUNDLE, [{"Alive": True, "Resources": _BUNDLE}]) == {}
