"""Placements: groups own runs of global ranks, modules own their group's."""

import pytest

from disagg_train.topology.placement import Placement


@pytest.fixture
def placement() -> Placement:
    modules = {"vision": "encoders", "audio": "encoders", "language": "language"}
    return Placement({"encoders": 3, "language": 4}, modules)


def test_groups_are_numbered_one_after_the_other(placement: Placement) -> None:
    assert placement.places("encoders") == (0, 1, 2)
    assert placement.places("language") == (3, 4, 5, 6)
    assert placement.world_size == 7


def test_a_module_owns_the_ranks_of_its_group(placement: Placement) -> None:
    assert placement.module_places("audio") == placement.places("encoders")


def test_modules_of_a_group_keep_the_order_of_the_job_file(placement: Placement) -> None:
    assert placement.modules_on("encoders") == ("vision", "audio")


def test_modules_are_colocated_iff_they_share_a_group(placement: Placement) -> None:
    assert placement.colocated("vision", "audio")
    assert not placement.colocated("vision", "language")
