"""A run is followed, and stopped, by its name; what happens to its board does not disturb it."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import ray

import disagg_train
from actors.board import NAMESPACE, announcing, boards
from disagg_train.errors import ClusterError, RunStopped
from disagg_train.metrics.board import RunFacts
from disagg_train.metrics.records import StepRecord
from disagg_train.trainer import Trainer
from tests.ray.jobs import job_with

if TYPE_CHECKING:
    from actors.pool import ActorPool

pytestmark = pytest.mark.ray

_ANSWER_S = 20.0


@pytest.fixture
def facts(pool: "ActorPool", tmp_path: Path) -> Iterator[RunFacts]:
    """A run's name, on a Ray that is there; no board of it is left."""
    yield RunFacts("looked-at", 9, str(tmp_path))
    assert boards() == []


def _record(step: int) -> StepRecord:
    return StepRecord(step, 1.0, 1.0, 0.1, 3, 5, 0.5, False, 0, 0, {})


def _pinned(name: str) -> None:
    """Wait until what was told before is on the board: an actor does one call after another."""
    board = ray.get_actor(name, namespace=NAMESPACE)
    ray.get(board.facts.remote(), timeout=_ANSWER_S)


def test_who_is_attached_sees_every_step_and_how_the_run_ended(facts: RunFacts) -> None:
    with announcing(facts, []) as announcer:
        announcer.tell([_record(0)], ["began"])
        with disagg_train.attach("looked-at") as run:
            assert ([r.step for r in run.records], run.notes) == ([0], ["began"])
            assert (run.num_steps, run.state) == (9, "training")
            seen = iter(run)
            assert next(seen).step == 0
            announcer.tell([_record(1)], [])
            assert next(seen).step == 1
            board = ray.get_actor("looked-at", namespace=NAMESPACE)
            ray.get(board.finish.remote("finished"), timeout=_ANSWER_S)
            assert list(seen) == []
            assert run.state == "finished"
            assert list(run.step_stats.index) == [0, 1]


def test_an_unknown_name_lists_those_that_there_are(facts: RunFacts) -> None:
    with announcing(facts, []), pytest.raises(ClusterError, match="there are: looked-at"):
        disagg_train.attach("other")


def test_a_second_run_of_a_name_gets_a_number_and_says_so(facts: RunFacts) -> None:
    notes: list[str] = []
    with announcing(facts, notes), announcing(facts, notes):
        assert boards() == ["looked-at", "looked-at-2"]
        with disagg_train.attach("looked-at-2") as run:
            assert run.name == "looked-at-2"
    assert len(notes) == 1
    assert "attach to this one as 'looked-at-2'" in notes[0]


def test_a_lost_board_does_not_disturb_the_run(facts: RunFacts) -> None:
    with announcing(facts, []) as announcer:
        run = disagg_train.attach("looked-at")
        board = ray.get_actor("looked-at", namespace=NAMESPACE)
        ray.kill(board)
        for step in range(50):
            assert not announcer.tell([_record(step)], [])
        assert run.state == "ended without a word"


def test_an_error_is_told_to_those_who_look_on(facts: RunFacts) -> None:
    run = None
    with pytest.raises(ZeroDivisionError), announcing(facts, []):
        run = disagg_train.attach("looked-at")
        raise ZeroDivisionError("by zero")
    assert run is not None
    assert run.state in ("failed: ZeroDivisionError: by zero", "ended without a word")


def test_a_stop_from_elsewhere_saves_and_can_be_resumed(pool: "ActorPool", tmp_path: Path) -> None:
    job = job_with("train.steps=50", "train.evaluation.samples=0", f"output={tmp_path}")
    trainer = Trainer(job)
    with pytest.raises(RunStopped):
        for record in trainer.fit(pool):
            assert record.step < 49, "nobody stopped it"
            if record.step == 1:
                with disagg_train.attach(job.name) as run:
                    run.stop()
                    assert Path(run.folder) == tmp_path
            _pinned(job.name)
    done = len(trainer.records)
    assert trainer.store.steps() == [done]
    assert boards() == []
    resumed = Trainer(job_with(f"train.steps={done + 1}", f"output={tmp_path}"), resume="auto")
    assert [record.step for record in resumed.fit(pool)] == [done]
