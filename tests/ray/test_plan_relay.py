"""A plan goes to every node once: its object store hands it to the node's ranks."""

import json

import pytest

from tests.ray.programs import run_program

pytestmark = [pytest.mark.ray, pytest.mark.soak]


@pytest.mark.timeout(200)
def test_a_plan_reaches_a_node_once_however_many_ranks_are_there() -> None:
    printed = run_program("tests.ray.plan_relay", timeout_s=180)
    assert json.loads(printed.splitlines()[-1])["copies_per_node"] == [1.0, 1.0]
