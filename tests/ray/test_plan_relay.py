"""A plan goes to every node once: its object store hands it to the node's ranks."""

import json
import subprocess
import sys
import tempfile

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.soak]


@pytest.mark.timeout(200)
def test_a_plan_reaches_a_node_once_however_many_ranks_are_there() -> None:
    command = [sys.executable, "-m", "tests.ray.plan_relay"]
    with tempfile.TemporaryDirectory(
        prefix="dt-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        run = subprocess.run(
            [*command, folder], capture_output=True, text=True, timeout=180, check=False
        )
    assert run.returncode == 0, run.stdout + run.stderr
    assert json.loads(run.stdout.splitlines()[-1])["copies_per_node"] == [1.0, 1.0]
