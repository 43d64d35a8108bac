"""A checkpoint counts only with its manifest, and only as it was written."""

from pathlib import Path

import numpy as np
import pytest

from disagg_train.checkpoint.save import load_weights, save_modules, write_manifest
from disagg_train.errors import CheckpointError


def _save(folder: Path) -> None:
    weights = {"vision.a.weight": np.arange(6.0).reshape(2, 3), "language.b": np.ones(2)}
    write_manifest(folder, {"name": "x"}, 3, save_modules(folder, weights))


def test_weights_come_back_as_they_were(tmp_path: Path) -> None:
    _save(tmp_path)
    weights = load_weights(tmp_path)
    assert sorted(weights) == ["language.b", "vision.a.weight"]
    assert weights["vision.a.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no manifest\.json"):
        load_weights(tmp_path)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    _save(tmp_path)
    with (tmp_path / "vision.npz").open("ab") as file:
        file.write(b"!")
    with pytest.raises(CheckpointError, match=r"vision\.npz changed since it was saved"):
        load_weights(tmp_path)
