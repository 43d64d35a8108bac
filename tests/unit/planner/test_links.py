"""How fast edges are: nodes are filled in the order of the groups' ranks."""

from typing import Any

import pytest

from disagg_train.boundary.of_job import job_graph
from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.planner.links import edge_bytes_per_s
from disagg_train.planner.machine import Hardware, Machine
from tests.unit.config.jobs import JOB

NODE, NETWORK = 100.0, 10.0
MACHINE = Machine(link_bytes_per_s=NETWORK, node_bytes_per_s=NODE)
SLOWER = Machine(link_bytes_per_s=4.0, node_bytes_per_s=40.0)
BOUNDARY = "vision->language"


def job_of(vision: dict[str, Any], language: dict[str, Any]) -> JobConfig:
    """Return the small job with other degrees, and as many ranks as these need."""
    overrides = []
    for group, module, degrees in (
        ("encoders", "vision", vision),
        ("language", "language", language),
    ):
        ranks = 1
        for axis in ("tp", "cp", "pp", "dp"):
            ranks *= degrees.get(axis, 1)
        overrides += [f"groups.{group}.ranks={ranks}"]
        overrides += [f"modules.{module}.parallel={degrees}".replace("'", "")]
    overrides.append("modules.language.model.num_layers=8")
    return load_job(JOB, [*overrides, "train.global_batch=64", "train.microbatches=4"])


def speeds(vision: dict[str, Any], language: dict[str, Any]) -> dict[str, float]:
    return edge_bytes_per_s(job_of(vision, language), Hardware(MACHINE))


def test_edges_are_named_as_in_the_stage_graph() -> None:
    job = job_of({"dp": 2, "pp": 2}, {"pp": 2, "vpp": 2})
    named = set(edge_bytes_per_s(job, Hardware(MACHINE)))
    assert named == {edge.name for edge in job_graph(job).edges}


def test_groups_that_share_a_node_talk_at_its_speed() -> None:
    assert speeds({"dp": 4}, {"tp": 4})[BOUNDARY] == NODE
    assert speeds({"dp": 4}, {"tp": 8})[BOUNDARY] == NETWORK


def test_a_boundary_is_in_a_node_if_the_stages_at_its_ends_are() -> None:
    """Ranks 0-3 encode; the first of the LLM's two stages is ranks 4-7, the second 8-11."""
    found = speeds({"dp": 4}, {"tp": 4, "pp": 2})
    assert found == {BOUNDARY: NODE, "language.0->language.1": NETWORK}


def test_a_stage_link_is_as_slow_as_its_slowest_pair() -> None:
    """Rank 0 encodes. Pairs of the LLM's links: 1-4, 2-5, 3-6; then 4-7, 5-8, 6-9."""
    found = speeds({"dp": 1}, {"dp": 3, "pp": 4})
    assert [found[f"language.{i}->language.{i + 1}"] for i in range(2)] == [NODE, NETWORK]


def test_an_interleaved_pipeline_goes_back_to_its_first_rank() -> None:
    found = speeds({"dp": 1}, {"dp": 3, "pp": 4, "vpp": 2})
    assert found["language.3->language.4"] == NETWORK


def test_groups_on_other_machines_never_share_a_node() -> None:
    hardware = Hardware(MACHINE, {"encoders": SLOWER})
    assert edge_bytes_per_s(job_of({"dp": 2}, {"tp": 2}), hardware)[BOUNDARY] == 4.0
    links = edge_bytes_per_s(job_of({"dp": 3}, {"tp": 4, "pp": 2}), hardware)
    assert links["language.0->language.1"] == NODE, "the LLM begins a node of its own"


def test_where_nothing_is_known_of_nodes_every_edge_is_between_them() -> None:
    flat = Hardware(Machine(link_bytes_per_s=NETWORK))
    found = edge_bytes_per_s(job_of({"dp": 1, "pp": 2}, {"tp": 2, "pp": 2}), flat)
    assert set(found.values()) == {NETWORK}


@pytest.mark.parametrize(
    ("stride", "size", "hop", "ring"),
    [
        (1, 8, NODE, NODE),
        (1, 16, NETWORK, 80.0),
        (2, 8, NETWORK, 40.0),
        (8, 4, NETWORK, NETWORK),
        (16, 2, NETWORK, NETWORK),
    ],
)
def test_a_sum_uses_all_links_that_its_group_has_in_a_node(
    stride: int, size: int, hop: float, ring: float
) -> None:
    assert MACHINE.hop_bytes_per_s(stride, size) == hop
    assert MACHINE.ring_bytes_per_s(stride, size) == ring
