"""Snapshots are stored beside the training, one at a time, and what goes wrong is told."""

from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
import torch

from disagg_train.checkpoint.sharded import Chunk, ModuleState, Snapshot, storage_reader
from disagg_train.engine.snapshot import Snapshots
from disagg_train.errors import CheckpointError
from disagg_train.metrics.records import SnapshotOrder

_DEADLINE_S = 30.0


class _State:
    """One module with a trained and a frozen weight, whose memory is used again."""

    def __init__(self) -> None:
        self._weight = torch.zeros(3)

    def snapshot(self, steps_done: int, everything: bool) -> Snapshot:
        self._weight.fill_(float(steps_done))
        trained = [Chunk("m.w", (3,), (0,), self._weight)]
        frozen = {"m": [Chunk("m.f", (2,), (0,), torch.ones(2))]} if everything else {}
        return Snapshot(steps_done, {"m": trained}, frozen)


@pytest.fixture
def snapshots() -> Iterator[Snapshots]:
    made = Snapshots(_State(), None, _DEADLINE_S)
    yield made
    made.close()


def test_a_checkpoint_has_everything_and_vaults_what_is_trained(
    snapshots: Snapshots, tmp_path: Path
) -> None:
    sent: list[Snapshot] = []
    order = SnapshotOrder(4, to_vaults=True, folder=str(tmp_path))
    snapshots.take(order, sent.append)
    stored = snapshots.stored(order)
    assert (set(stored.files), stored.error) == ({"m/__0_0.distcp", "m/.metadata"}, "")
    assert [chunk.name for chunk in sent[0].trained["m"]] == ["m.w"]
    state = ModuleState(storage_reader(str(tmp_path / "m")), "m")
    assert state.read("m.w").tolist() == [4.0] * 3
    assert state.read("m.f").tolist() == [1.0] * 2


def test_frozen_weights_are_not_asked_for_where_only_vaults_want_a_copy(
    snapshots: Snapshots,
) -> None:
    sent: list[Snapshot] = []
    order = SnapshotOrder(4, to_vaults=True)
    snapshots.take(order, sent.append)
    assert snapshots.stored(order).files == {}
    assert sent[0].frozen == {}


def test_the_copy_stays_as_it_is_until_it_is_stored(snapshots: Snapshots) -> None:
    begun, may_end = Event(), Event()
    sent: list[list[float]] = []

    def send(snapshot: Snapshot) -> None:
        begun.set()
        assert may_end.wait(_DEADLINE_S)
        sent.append(snapshot.trained["m"][0].tensor.tolist())

    snapshots.take(SnapshotOrder(1, to_vaults=True), send)
    assert begun.wait(_DEADLINE_S)
    assert sent == []
    may_end.set()
    snapshots.take(SnapshotOrder(2, to_vaults=True), send)
    assert sent[0] == [1.0] * 3


def test_a_vault_that_fails_does_not_keep_the_checkpoint_from_being_written(
    snapshots: Snapshots, tmp_path: Path
) -> None:
    def send(snapshot: Snapshot) -> None:
        raise OSError("gone")

    order = SnapshotOrder(1, to_vaults=True, folder=str(tmp_path))
    snapshots.take(order, send)
    stored = snapshots.stored(order)
    assert stored.copy_error == "cannot copy the state to the vaults: OSError('gone')"
    assert stored.error == ""
    assert set(stored.files) == {"m/__0_0.distcp", "m/.metadata"}


def test_a_folder_that_cannot_be_written_is_told_and_the_next_one_is_tried(
    snapshots: Snapshots, tmp_path: Path
) -> None:
    (tmp_path / "m").write_text("in the way")
    order = SnapshotOrder(1, folder=str(tmp_path))
    snapshots.take(order, None)
    assert f"cannot write {tmp_path}/m: rank 0: FileExistsError" in snapshots.stored(order).error
    order = SnapshotOrder(2, folder=str(tmp_path / "other"))
    snapshots.take(order, None)
    assert snapshots.stored(order).error == ""


def test_what_is_not_stored_in_time_is_an_error_that_names_it() -> None:
    may_end = Event()
    snapshots = Snapshots(_State(), None, 0.01)
    order = SnapshotOrder(7, to_vaults=True)
    snapshots.take(order, lambda snapshot: may_end.wait(_DEADLINE_S) and None)
    with pytest.raises(CheckpointError, match=r"after 7 steps is not stored after 0\.01 s"):
        snapshots.stored(order)
    may_end.set()
    snapshots.close()
