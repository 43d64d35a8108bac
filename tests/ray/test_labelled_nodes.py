"""Groups are on the nodes that the job file names, and come back there."""

import pytest

from tests.ray.programs import run_program

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.timeout(480)
def test_labels_hold_while_nodes_come_and_go_and_tp_groups_are_whole() -> None:
    print(run_program("tests.ray.labelled_nodes", timeout_s=460))
