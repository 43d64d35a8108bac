"""Groups run on the nodes that were made for them, also where another node had room first."""

import json

import pytest

from tests.ray.programs import run_program

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.timeout(200)
def test_every_rank_is_on_a_node_of_its_group() -> None:
    printed = run_program("tests.ray.pod_groups", timeout_s=180)
    placed = json.loads(printed.splitlines()[-1])
    assert placed == {"encoders": ["encoders"] * 2, "language": ["language"] * 2}  # tp 2
