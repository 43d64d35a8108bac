"""What a run gives up on, what it starts again as a whole, and what changes its size."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from disagg_train.driver.requests import ResizeRequest
from tests.chaos.audit import Traces, traces_of
from tests.chaos.faults import Fault, Moment, processes_of
from tests.chaos.jobs import chaos_job, marks_folder
from tests.chaos.nodes import Nodes, this_machine
from tests.chaos.runs import run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

_NUM_RANKS = 3
Undisturbed = Callable[[str], Traces]


def _kills(*steps: int, moment: Moment = "weights updated") -> list[Fault]:
    """Return faults that kill a rank of the LLM at steps, one after the other."""
    return [Fault(f"fault-{at}", "kill", moment, 1, step) for at, step in enumerate(steps)]


@pytest.mark.soak
class TestARunEnds:
    def test_when_a_step_fails_twice_the_same_way(self, nodes: Nodes, tmp_path: Path) -> None:
        faults = _kills(6, 6)
        outcome = run(chaos_job("dp", tmp_path / "run", faults), nodes, faults)
        assert outcome.status == 1, outcome.log
        assert "step 6 failed twice the same way" in outcome.log
        assert nodes.left_over() == []

    def test_when_its_restarts_are_used_up(self, nodes: Nodes, tmp_path: Path) -> None:
        faults, most = _kills(4, 8), "recovery.max_restarts=1"
        outcome = run(chaos_job("dp", tmp_path / "run", faults, [most]), nodes, faults)
        assert outcome.status == 1, outcome.log
        assert f"{most} are used up" in outcome.log
        assert nodes.left_over() == []

    def test_when_it_may_not_restart_and_can_be_resumed_by_hand(
        self, nodes: Nodes, undisturbed: Undisturbed, tmp_path: Path
    ) -> None:
        faults = _kills(9)
        job = chaos_job("dp", tmp_path / "run", faults, ["recovery.restart=never"])
        outcome = run(job, nodes, faults)
        assert outcome.status == 1, outcome.log
        assert "recovery.restart is 'never'" in outcome.log
        outcome = run(job, nodes)
        assert outcome.status == 0, outcome.log
        assert traces_of(tmp_path / "run").differences_to(undisturbed("dp")) == []


@pytest.mark.parametrize(
    "restart",
    [pytest.param("group", marks=pytest.mark.slow), pytest.param("job", marks=pytest.mark.soak)],
)
def test_who_keeps_its_process(
    restart: str, nodes: Nodes, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    faults = _kills(8)
    job = chaos_job("dp", tmp_path / "run", faults, [f"recovery.restart={restart}"])
    outcome = run(job, nodes, faults)
    assert outcome.status == 0, outcome.log
    found = [processes_of(marks_folder(tmp_path / "run"), rank) for rank in range(_NUM_RANKS)]
    kept = [first == second for first, second in found]
    assert kept == [restart == "group", False, False], outcome.log
    assert traces_of(tmp_path / "run").differences_to(undisturbed("dp")) == []


class TestTheTrainingStaysTheSame:
    @pytest.mark.slow
    def test_when_a_group_is_resized(
        self, nodes: Nodes, undisturbed: Undisturbed, tmp_path: Path
    ) -> None:
        requests = {6: ResizeRequest("language", 1), 14: ResizeRequest("language", 3)}
        outcome = run(chaos_job("dp", tmp_path / "run"), nodes, requests=requests)
        assert outcome.status == 0, outcome.log
        assert "'language' has 1 ranks" in outcome.log
        assert "'language' has 3 ranks" in outcome.log
        _check_same_training(traces_of(tmp_path / "run"), undisturbed("dp"))
        assert nodes.left_over() == []

    @pytest.mark.soak
    def test_when_a_node_is_lost_for_good(
        self, nodes: Nodes, undisturbed: Undisturbed, tmp_path: Path
    ) -> None:
        faults = [Fault("fault-0", "remove node", "op", 2, 8, count=50)]
        job = chaos_job("dp", tmp_path / "run", faults, ["recovery.replacement_s=3"])
        with nodes.none_to_spare():
            outcome = run(job, nodes, faults)
        assert outcome.status == 0, outcome.log
        assert "less data parallelism" in outcome.log
        _check_same_training(traces_of(tmp_path / "run"), undisturbed("dp"))
        assert nodes.left_over() == []


@pytest.mark.soak
def test_a_local_ray_vanishes_with_a_killed_driver(tmp_path: Path) -> None:
    faults = [Fault("fault-0", "kill", "recording a step", -1, 7)]
    with this_machine() as machine:
        outcome = run(chaos_job("dp", tmp_path / "run", faults), machine, faults)
        assert (outcome.status, outcome.starts) == (0, 2), outcome.log
        assert machine.left_over() == [], outcome.log
    assert traces_of(tmp_path / "run").times_seen == {1}


def _check_same_training(found: Traces, expected: Traces) -> None:
    """Compare runs whose layouts add numbers in different orders."""
    assert found.samples == expected.samples
    for mine, theirs in itertools.zip_longest(found.steps, expected.steps):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=0.0)
