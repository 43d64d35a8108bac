"""When states are kept, what makes a checkpoint count, and what happens where none does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from disagg_train.checkpoint.manifest import CheckpointStore, Manifest
from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.driver import loop
from disagg_train.driver.keeping import Keeper
from disagg_train.errors import CheckpointError, RankError
from disagg_train.metrics.records import SnapshotOrder, StepRecord, Stored
from disagg_train.planner.in_order import in_order
from disagg_train.planner.step_plan import SampleSize, StepPlan
from tests.unit.config.jobs import JOB
from tests.unit.driver.fake_group import FakeGroup, failed

_LOST = RankError("the actor died", "all", 0, cause="died")


class _Run:
    """A keeper with a group and a clock of its own."""

    def __init__(self, folder: Path, *overrides: str, copies: bool = False, **more: Any) -> None:
        job = load_job(JOB, ["checkpoint.every_minutes=0", *overrides])
        self.now_s, self.group, self.folder = 0.0, FakeGroup(), folder
        self.store = CheckpointStore(str(folder))
        self.keeper = self._keeper(job, copies, **more)
        self.keeper.attach([self.group])

    def _keeper(self, job: JobConfig, copies: bool, **more: Any) -> Keeper:
        clock: Callable[[], float] = lambda: self.now_s  # noqa: E731
        return Keeper(job, self.store, self._manifest, copies, clock=clock, **more)

    def _manifest(self, steps_done: int) -> Manifest:
        return Manifest(steps_done, {"name": "x"}, {}, {"epoch": steps_done}, [])

    def step(self, step: int, took_s: float = 1.0) -> SnapshotOrder | None:
        """Go from one step to the next, as the loop does."""
        order = self.keeper.order_after(step)
        self.keeper.poll()
        self.keeper.note_step(record(step, took_s))
        self.keeper.poll()
        return order

    def steps(self, count: int) -> list[SnapshotOrder]:
        return [order for step in range(count) if (order := self.step(step))]


def record(step: int, took_s: float = 1.0) -> StepRecord:
    return StepRecord(step, 1.0, 1.0, 0.1, 1, 1, took_s, False, 0, 0, {})


def _plans(count: int) -> list[StepPlan]:
    samples = (SampleSize(0, 5, 2), SampleSize(1, 7, 1))
    return [StepPlan(step, samples, {"language": in_order(2, 1, 1)}, 0.1) for step in range(count)]


def test_a_checkpoint_counts_once_all_ranks_have_stored_their_part(tmp_path: Path) -> None:
    run = _Run(tmp_path, "checkpoint.every_steps=3")
    run.group.answer = [Stored(0.1, 1.0, {"language/0": "a"}), Stored(0.2, 0.5, {"vision/1": "b"})]
    run.group.holds_back = True
    assert run.steps(3) == [SnapshotOrder(3, folder=run.store.address(3))]
    assert run.store.steps() == []
    assert (run.keeper.is_storing, run.keeper.num_written) == (True, 0)
    run.group.let_go()
    run.keeper.poll()
    assert (run.keeper.is_storing, run.keeper.num_written) == (False, 1)
    manifest = run.store.read(3)
    assert manifest.files == {"language/0": "a", "vision/1": "b"}
    assert manifest.sampler == {"epoch": 3}
    assert run.keeper.newest_checkpoint == 3
    (saved,) = run.keeper.saved
    assert (saved.steps_done, saved.stall_s, saved.busy_s) == (3, 0.2, 1.0)


def test_ranks_are_asked_for_their_part_only_once_all_have_copied(tmp_path: Path) -> None:
    run = _Run(tmp_path, "checkpoint.every_steps=1")
    run.keeper.order_after(0)
    assert run.group.calls == ["snapshot 1"]
    run.keeper.poll()
    assert run.group.calls == ["snapshot 1", "stored 1"]


def test_old_checkpoints_go_once_newer_ones_count(tmp_path: Path) -> None:
    run = _Run(tmp_path, "checkpoint.every_steps=2", "checkpoint.keep=2")
    run.steps(11)
    assert run.store.steps() == [8, 10]
    assert run.keeper.num_written == 5


def test_checkpoints_are_due_by_the_clock_too(tmp_path: Path) -> None:
    run = _Run(tmp_path, "checkpoint.every_minutes=2")
    assert run.step(0) is None
    run.now_s = 119.0
    assert run.step(1) is None
    run.now_s = 121.0
    assert run.step(2) is not None
    run.now_s = 240.0
    assert run.step(3) is None
    run.now_s = 242.0
    assert run.step(4) is not None


def test_a_checkpoint_waits_for_the_one_before_it(tmp_path: Path) -> None:
    run = _Run(tmp_path, "checkpoint.every_steps=2")
    run.group.holds_back = True
    run.steps(3)
    waits = 0

    def deliver() -> None:
        nonlocal waits
        waits += 1
        run.group.let_go()

    assert run.keeper.order_after(3, deliver) is not None
    assert waits == 1
    assert run.store.steps() == [2]
    assert run.group.calls == ["snapshot 2", "stored 2", "snapshot 4"]


def test_waiting_has_a_deadline(tmp_path: Path) -> None:
    run = _Run(tmp_path, "checkpoint.every_steps=1", "deadlines.storing_s=0.1")
    run.group.holds_back = True
    run.step(0)
    with pytest.raises(RankError, match=r"0\.15 s; the keeping of the state after 1 steps hangs"):
        run.step(1)


def test_a_checkpoint_of_the_same_state_is_not_written_again(tmp_path: Path) -> None:
    run = _Run(tmp_path, "checkpoint.every_steps=2", resumed_from=4)
    run.steps(6)
    run.keeper.save(6)
    run.keeper.save(7)
    assert [order.steps_done for order in run.group.orders] == [2, 6, 7]


def test_a_failed_checkpoint_ends_the_run_or_is_noted(tmp_path: Path) -> None:
    for on_error in ("stop", "continue"):
        folder = tmp_path / on_error
        run = _Run(folder, "checkpoint.every_steps=1", f"checkpoint.on_error={on_error}")
        run.step(0)
        run.group.answer = [Stored(0.1, 0.1), Stored(0.1, 0.1, error="no space left")]
        if on_error == "stop":
            with pytest.raises(CheckpointError, match="after 2 steps was not .*: no space left"):
                run.step(1)
        else:
            run.step(1)
            assert len(run.keeper.notes) == 1 and "no space left" in run.keeper.notes[0]
            with pytest.raises(CheckpointError, match="no space left"):
                run.keeper.save(9)
        assert run.store.steps() == [1]


def test_storage_that_ranks_gave_up_on_is_a_failed_checkpoint(tmp_path: Path) -> None:
    run = _Run(tmp_path, "checkpoint.every_steps=1", "checkpoint.on_error=continue")
    run.group.holds_back = True
    run.step(0)
    run.group.let_go(CheckpointError("not stored after 600 s"))
    run.group.holds_back = False
    run.step(1)
    assert run.store.steps() == [2]
    assert "after 1 steps was not written" in run.keeper.notes[0]


def test_copies_that_fail_do_not_count_and_are_noted_once(tmp_path: Path) -> None:
    run = _Run(tmp_path, "recovery.copy_every_steps=1", copies=True)
    run.steps(2)
    run.group.answer = [Stored(0.1, 0.1, copy_error="a vault is gone")]
    for step in (2, 3, 4):
        run.step(step)
    assert run.keeper.newest_copy == 2
    assert run.keeper.notes == ["the state after 3 steps is not in memory: a vault is gone"]


def test_a_folder_that_cannot_be_made_is_a_failed_checkpoint(tmp_path: Path) -> None:
    overrides = ["checkpoint.every_minutes=1", "checkpoint.on_error=continue"]
    run = _Run(tmp_path / "file" / "folder", *overrides)
    (tmp_path / "file").write_text("not a folder")
    run.now_s = 61.0
    assert run.steps(3) == []
    assert len(run.keeper.notes) == 1
    with pytest.raises(CheckpointError, match="cannot write"):
        run.keeper.save(3)


def test_without_vaults_and_rules_nothing_is_kept(tmp_path: Path) -> None:
    run = _Run(tmp_path)
    assert run.steps(20) == []


def test_two_copies_are_made_at_once_and_then_as_many_as_their_cost_allows(
    tmp_path: Path,
) -> None:
    run = _Run(tmp_path, "recovery.max_overhead=0.01", copies=True)
    run.group.answer = [Stored(0.05, 9.0), Stored(0.02, 9.0)]
    assert run.steps(13) == [SnapshotOrder(done, to_vaults=True) for done in (1, 2, 7, 12)]
    assert run.keeper.newest_copy == 12


def test_a_copy_does_not_wait_for_another_order(tmp_path: Path) -> None:
    run = _Run(tmp_path, "recovery.copy_every_steps=1", copies=True)
    run.group.holds_back = True
    assert len(run.steps(5)) == 1
    assert run.keeper.newest_copy is None
    run.group.let_go()
    assert run.step(5) == SnapshotOrder(6, to_vaults=True)
    assert run.keeper.newest_copy == 1


def test_one_copy_can_go_to_both(tmp_path: Path) -> None:
    overrides = ["checkpoint.every_steps=4", "recovery.copy_every_steps=2"]
    run = _Run(tmp_path, *overrides, copies=True)
    orders = [(o.steps_done, o.to_vaults, o.folder is not None) for o in run.steps(8)]
    assert orders == [
        (1, True, False),
        (3, True, False),
        (4, False, True),
        (5, True, False),
        (7, True, False),
        (8, False, True),
    ]
    run.keeper.attach([run.group])
    assert run.step(11) == SnapshotOrder(12, to_vaults=True, folder=run.store.address(12))


def test_a_lost_group_takes_its_order_along_without_a_word(tmp_path: Path) -> None:
    run = _Run(tmp_path, "checkpoint.every_steps=2")
    run.group.holds_back = True
    run.steps(3)
    run.group.let_go(_LOST)
    run.keeper.poll()
    run.keeper.finish()
    assert run.store.steps() == []
    assert run.keeper.notes == []


def test_a_rank_that_trains_on_though_it_cannot_copy_is_an_error(tmp_path: Path) -> None:
    run = _Run(tmp_path, "checkpoint.every_steps=2")
    run.group.snapshot = lambda order: failed(_LOST)  # type: ignore[method-assign]
    run.step(0)
    run.step(1)
    with pytest.raises(RankError, match="the actor died"):
        run.step(2)


def test_a_last_checkpoint_tells_of_a_lost_group(tmp_path: Path) -> None:
    run = _Run(tmp_path)
    run.group.snapshot = lambda order: failed(_LOST)  # type: ignore[method-assign]
    with pytest.raises(RankError, match="the actor died"):
        run.keeper.save(3)


def test_new_actors_are_asked_again_for_what_was_under_way(tmp_path: Path) -> None:
    run = _Run(tmp_path, "checkpoint.every_minutes=1", copies=True)
    run.group.holds_back = True
    run.now_s = 61.0
    assert run.step(0) is not None
    new = FakeGroup()
    run.keeper.attach([new])
    run.group.let_go()
    run.now_s = 62.0
    assert run.step(1) == SnapshotOrder(2, to_vaults=True, folder=run.store.address(2))
    assert new.orders and run.store.steps() == [2]


def test_a_synchronous_checkpoint_is_written_before_the_next_step(tmp_path: Path) -> None:
    run = _Run(tmp_path, "checkpoint.every_steps=2", "checkpoint.asynchronous=false")
    steps = loop.train([run.group], _plans(5), 5.0, keeper=run.keeper)
    assert [record.step for record, _ in steps] == list(range(5))
    calls = "train 0, train 1, snapshot 2, stored 2, train 2, train 3, snapshot 4, stored 4"
    assert run.group.calls == [*calls.split(", "), "train 4"]
    assert run.store.steps() == [2, 4]


def test_the_loop_orders_states_between_two_steps(tmp_path: Path) -> None:
    run = _Run(tmp_path, "checkpoint.every_steps=2")
    steps = loop.train([run.group], _plans(5), 5.0, lambda step: step == 3, keeper=run.keeper)
    assert [record.step for record, _ in steps] == list(range(5))
    calls = "train 0, train 1, snapshot 2, train 2, stored 2, train 3, snapshot 4, train 4"
    assert run.group.calls == [*calls.split(", "), "stored 4"]
    run.keeper.finish()
    assert run.store.steps() == [2, 4]


def test_a_step_that_fails_is_blamed_and_not_the_copy_after_it(tmp_path: Path) -> None:
    run = _Run(tmp_path, "checkpoint.every_steps=1")
    run.group._fails_at = 2
    run.group.snapshot = lambda order: failed(_LOST)  # type: ignore[method-assign]
    with pytest.raises(RankError, match="raised"):
        list(loop.train([run.group], _plans(5)[2:], 5.0, keeper=run.keeper))
