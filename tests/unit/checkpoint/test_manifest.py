"""A checkpoint counts only with its manifest, and only as it was written."""

import json
from pathlib import Path

import pytest

from disagg_train.checkpoint.manifest import CheckpointStore, Manifest
from disagg_train.errors import CheckpointError
from tests.unit.checkpoint.saved import save_weights


@pytest.fixture(params=["path", "file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    folders = {"path": f"{tmp_path}/c", "file": f"file://{tmp_path}/c", "memory": "memory://runs/c"}
    made = CheckpointStore(folders[request.param])
    made.clear()
    return made


def _save(store: CheckpointStore, step: int) -> Manifest:
    store.begin(step)
    manifest = Manifest(step, {"name": "x"}, {}, {"epoch": 2}, [{"key": 1, "reason": "torn"}])
    store.commit(manifest)
    return manifest


def test_a_manifest_comes_back_as_it_was(store: CheckpointStore) -> None:
    assert (store.steps(), store.newest_sound()) == ([], (None, []))
    manifest = _save(store, 120)
    assert store.read(120) == manifest
    assert store.newest_sound() == (manifest, [])
    assert store.address(120).endswith("step-00000120")


def test_an_interrupted_save_does_not_count_and_its_remains_go(store: CheckpointStore) -> None:
    old = _save(store, 1)
    address = store.begin(2)
    assert store.steps() == [1]
    assert store.newest_sound() == (old, [])
    assert store.begin(2) == address
    _save(store, 3)
    store.prune(keep=9)
    assert store.steps() == [1, 3]
    assert store._folders() == [1, 3]


def test_the_newest_are_kept_and_what_is_under_way(store: CheckpointStore) -> None:
    for step in (10, 20, 30, 40):
        _save(store, step)
    store.begin(50)
    store.prune(keep=2)
    assert store.steps() == [30, 40]
    assert store._folders() == [30, 40, 50]


def test_newer_ones_of_before_going_back_take_no_place_of_older_ones(
    store: CheckpointStore,
) -> None:
    for step in (10, 20, 90):
        _save(store, step)
    later = CheckpointStore(store.address(0).rpartition("/")[0])
    _save(later, 30)
    later.prune(keep=2)
    assert later.steps() == [20, 30, 90]


def test_all_checkpoints_or_later_ones_can_be_removed(store: CheckpointStore) -> None:
    for step in (0, 1, 2):
        _save(store, step)
    store.begin(3)
    store.clear(after=1)
    assert store._folders() == [0, 1]
    store.clear()
    assert store._folders() == []


def test_a_step_can_be_saved_again(tmp_path: Path) -> None:
    folder = save_weights(str(tmp_path))
    (Path(folder) / "stray").write_text("of an earlier save")
    assert save_weights(str(tmp_path)) == folder
    assert CheckpointStore(str(tmp_path)).newest_sound()[1] == []
    assert not (Path(folder) / "stray").exists()


def test_a_flipped_byte_is_found_in_every_file_at_every_place(tmp_path: Path) -> None:
    folder = save_weights(str(tmp_path))
    store = CheckpointStore(str(tmp_path))
    for name in store.read(3).files:
        file = Path(folder) / name
        sound = file.read_bytes()
        for position in range(0, len(sound), max(1, len(sound) // 40)):
            changed = bytearray(sound)
            changed[position] ^= 1
            file.write_bytes(changed)
            with pytest.raises(CheckpointError, match=rf"{file} changed since it was saved"):
                store.verify(3)
        file.write_bytes(sound)
    store.verify(3)


@pytest.mark.parametrize("damage", ["gone", "cut", "longer"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    tmp_path: Path, damage: str
) -> None:
    save_weights(str(tmp_path), step=1)
    file = Path(save_weights(str(tmp_path), step=2)) / "vision" / "__0_0.distcp"
    if damage == "gone":
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(content[:-1] if damage == "cut" else content + b"!")
    manifest, notes = CheckpointStore(str(tmp_path)).newest_sound()
    assert manifest is not None and manifest.step == 1
    assert len(notes) == 1 and str(file) in notes[0]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"version": 2, "job": {}}', b"\xff"])
def test_a_manifest_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = save_weights(str(tmp_path))
    (Path(folder) / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot read .*manifest\.json"):
        CheckpointStore(str(tmp_path)).read(3)


def test_a_manifest_of_another_version_is_refused(tmp_path: Path) -> None:
    file = Path(save_weights(str(tmp_path))) / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": 1}))
    with pytest.raises(CheckpointError, match=r"is of version 1, this program reads 2"):
        CheckpointStore(str(tmp_path)).read(3)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot write .*file/c/step-00000001"):
        CheckpointStore(str(tmp_path / "file" / "c")).begin(1)
