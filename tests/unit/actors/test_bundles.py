"""How groups are cut into bundles: a tp group is on one node, wherever a node is large enough."""

import copy
from math import ceil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.bundles import Bundles, bundles_of
from actors.nodes import Node
from actors.resources import Resources
from disagg_train.config.groups import GroupConfig
from disagg_train.config.load import load_job
from disagg_train.config.modules import tp_ranks
from tests.unit.config.jobs import JOB


def _node(cpus: float, gpus: float = 0.0, **labels: str) -> Node:
    total = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    return Node("10.0.0.1", labels, total, total)


def _bundles(ranks: int, tp: int, nodes: list[Node], takes: Any = None, **about: Any) -> Bundles:
    config = GroupConfig(ranks=ranks, **about)
    return bundles_of("group", config, ranks, tp, takes or Resources(0.0, 1.0), nodes)


def test_a_bundle_holds_a_whole_tp_group() -> None:
    found = _bundles(6, 2, [_node(3.0)] * 3)
    assert (found.count, found.resources, found.strategy) == (3, {"CPU": 2.0}, "PACK")
    assert [found.of_actor(number) for number in range(6)] == [0, 0, 1, 1, 2, 2]
    assert not found.note


def test_nodes_of_odd_size_have_room_for_whole_tp_groups_only() -> None:
    nodes = [_node(3.0), _node(5.0), _node(1.0)]
    assert _bundles(8, 2, nodes).num_on(nodes) == 1 + 2


def test_a_tp_group_larger_than_any_node_is_cut_as_little_as_can_be_and_people_are_told() -> None:
    found = _bundles(16, 8, [_node(5.0), _node(3.0)])
    assert (found.ranks_per_bundle, found.count, found.resources) == (4, 4, {"CPU": 4.0})
    assert "no node has room for the 8 ranks of a tp group of group 'group'" in found.note
    assert "4 each" in found.note


def test_only_nodes_with_the_labels_count() -> None:
    nodes = [_node(8.0), _node(2.0, pool="small"), _node(3.0, pool="small")]
    found = _bundles(4, 4, nodes, labels={"pool": "small"})
    assert (found.ranks_per_bundle, dict(found.selector)) == (2, {"pool": "small"})
    assert found.num_on(nodes) == 2


def test_a_group_waits_for_nodes_that_are_not_there_yet_with_its_tp_groups_whole() -> None:
    assert _bundles(4, 4, [_node(8.0)], labels={"pool": "later"}).ranks_per_bundle == 4


def test_spread_is_told_to_ray() -> None:
    assert _bundles(4, 1, [_node(8.0)], strategy="spread").strategy == "SPREAD"


def test_colocated_modules_share_bundles_of_their_larger_tp() -> None:
    job: dict[str, Any] = copy.deepcopy(dict(JOB))
    job["modules"]["vision"] |= {"group": "language", "parallel": {"tp": 4}}
    del job["groups"]["encoders"]
    assert tp_ranks(load_job(job).modules, "language") == 4


@pytest.mark.parametrize(
    ("part", "ranks", "gpus"),
    [(1.0, 4, 4.0), (0.25, 2, 0.5), (0.25, 8, 2.0), (0.4, 4, 2.0), (0.1, 10, 1.0), (0.75, 2, 2.0)],
)
def test_parts_of_gpus_are_of_whole_ones(part: float, ranks: int, gpus: float) -> None:
    assert Resources(part, 1.0).bundle(ranks) == {"GPU": gpus, "CPU": float(ranks)}


@given(st.floats(0.05, 1.0), st.integers(1, 16))
def test_the_gpus_of_a_bundle_hold_all_its_ranks(part: float, ranks: int) -> None:
    gpus = Resources(part, 1.0).bundle(ranks)["GPU"]
    assert gpus <= 1 or gpus == int(gpus), "Ray knows no 1.5 GPUs"
    per_gpu = int(1 / part + 1e-6)
    assert ceil(gpus) * per_gpu >= ranks
    assert gpus >= part * ranks - 1e-3
