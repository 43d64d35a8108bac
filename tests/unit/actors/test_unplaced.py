"""The message for a group that was not placed says what it asked for and what there is."""

from actors.bundles import Bundles
from actors.nodes import Node
from actors.unplaced import unplaced

_NODES = [
    Node(
        "10.0.0.1",
        {"pool": "language", "ray.io/node-id": "abc"},
        {"CPU": 4.0, "GPU": 4.0, "memory": 1e9, "accelerator_type:H100": 1.0},
        {"CPU": 4.0, "GPU": 1.0, "accelerator_type:H100": 1.0},
    ),
    Node("10.0.0.2", {}, {"CPU": 3.0}, {}),
]


def _text(ranks: int = 4, per_bundle: int = 2, nodes: list[Node] = _NODES, **labels: str) -> str:
    resources = {"GPU": float(per_bundle), "CPU": float(per_bundle)}
    bundles = Bundles("encoders", ranks, per_bundle, 2, resources, labels, labels)
    return unplaced(bundles, nodes, 60.0)


def test_it_names_the_bundle_and_what_every_node_has() -> None:
    assert _text() == (
        "group 'encoders' was not placed in 60 s: no node has room for its bundle 1 of 2, which "
        "needs 2 CPU and 2 GPU for the 2 ranks of a tp group.\n"
        "The cluster has\n"
        "  10.0.0.1: 4 of 4 CPU, 1 of 4 GPU, 1 of 1 accelerator_type:H100 free; labels "
        "pool=language\n"
        "  10.0.0.2: 0 of 3 CPU free; no labels\n"
        "Start nodes, change groups.encoders.ranks, or raise deadlines.placement_s."
    )


def test_bundles_that_have_room_are_not_blamed() -> None:
    assert "bundle 2 of 4, which needs 1 CPU and 1 GPU for one rank." in _text(per_bundle=1)


def test_labels_that_no_node_has_are_named() -> None:
    text = _text(pool="encodr")
    assert "no node has the labels pool=encodr of groups.encoders.labels" in text
    assert "change groups.encoders.ranks or groups.encoders.labels" in text


def test_too_few_nodes_with_the_labels_are_another_matter() -> None:
    text = _text(pool="language")
    assert "no node with the labels pool=language has room for its bundle 1 of 2" in text


def test_of_many_nodes_some_are_listed() -> None:
    text = _text(nodes=_NODES * 10)
    assert text.count("10.0.0") == 16
    assert "and 4 more nodes" in text


def test_an_empty_cluster_is_one_too() -> None:
    assert "bundle 1 of 2" in _text(nodes=[])
