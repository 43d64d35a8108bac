"""A checkpoint counts only with its manifest, and only as it was written."""

from pathlib import Path

import numpy as np
import pytest

from disagg_train.checkpoint.save import (
    CheckpointReader,
    load_weights,
    save_modules,
    write_manifest,
)
from disagg_train.errors import CheckpointError


def _save(folder: Path) -> None:
    weights = {"vision.a.weight": np.arange(6.0).reshape(2, 3), "language.b": np.ones(2)}
    write_manifest(folder, {"name": "x"}, 3, save_modules(folder, weights, 0))


def test_weights_come_back_as_they_were(tmp_path: Path) -> None:
    _save(tmp_path)
    weights = load_weights(tmp_path)
    assert sorted(weights) == ["language.b", "vision.a.weight"]
    assert weights["vision.a.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_ranks_write_files_of_their_own_for_one_module(tmp_path: Path) -> None:
    files = {}
    for rank in (0, 1):
        files |= save_modules(tmp_path, {f"language.expert{rank}": np.full(2, rank)}, rank)
    write_manifest(tmp_path, {"name": "x"}, 3, files)
    weights = load_weights(tmp_path)
    assert {name: w.tolist() for name, w in weights.items()} == {
        "language.expert0": [0, 0],
        "language.expert1": [1, 1],
    }


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no manifest\.json"):
        load_weights(tmp_path)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    _save(tmp_path)
    with (tmp_path / "vision.0.npz").open("ab") as file:
        file.write(b"!")
    with pytest.raises(CheckpointError, match=r"vision\.0\.npz changed since it was saved"):
        load_weights(tmp_path)


def test_a_reader_takes_a_run_or_its_checkpoint_and_reads_one_weight(tmp_path: Path) -> None:
    _save(tmp_path / "checkpoint")
    for run in (tmp_path, tmp_path / "checkpoint"):
        with CheckpointReader(run) as reader:
            assert sorted(reader.names) == ["language.b", "vision.a.weight"]
            assert "language.b" in reader
            assert "language.a" not in reader
            assert reader.read("vision.a.weight").tolist() == [[0, 1, 2], [3, 4, 5]]
            assert (reader.step, reader.job) == (3, {"name": "x"})


def test_a_reader_refuses_what_changed_inside_a_file(tmp_path: Path) -> None:
    _save(tmp_path)
    file = tmp_path / "vision.0.npz"
    content = file.read_bytes()
    file.write_bytes(content.replace(np.float64(5.0).tobytes(), np.float64(6.0).tobytes()))
    with CheckpointReader(tmp_path) as reader:
        with pytest.raises(CheckpointError, match=r"vision\.0\.npz changed since it was saved"):
            reader.read("vision.a.weight")
        with pytest.raises(CheckpointError, match=r"vision\.0\.npz changed since it was saved"):
            reader.verify()


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    _save(tmp_path)
    (tmp_path / "language.0.npz").unlink()
    with pytest.raises(CheckpointError, match=r"language\.0\.npz is gone"):
        CheckpointReader(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"job": {}}', b"\xff"])
def test_a_manifest_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot read .*manifest\.json"):
        CheckpointReader(tmp_path)
