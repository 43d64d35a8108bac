"""Weights of a finished checkpoint, by name, wherever in a run's folders one points."""

from pathlib import Path

import pytest
import torch

from disagg_train.checkpoint.manifest import CheckpointStore, Manifest
from disagg_train.checkpoint.reader import CheckpointReader
from disagg_train.checkpoint.sharded import Chunk, save_module
from disagg_train.errors import CheckpointError
from tests.checkpoints import load_weights
from tests.unit.checkpoint.saved import WEIGHTS, save_weights


def test_a_reader_takes_a_run_its_checkpoints_or_one_of_them(tmp_path: Path) -> None:
    save_weights(str(tmp_path / "checkpoints"), {"language.old": WEIGHTS["language.b"]}, step=2)
    folder = save_weights(str(tmp_path / "checkpoints"))
    for run in (tmp_path, tmp_path / "checkpoints", Path(folder), f"file://{tmp_path}"):
        with CheckpointReader(run) as reader:
            assert sorted(reader.names) == sorted(WEIGHTS)
            assert "language.b" in reader
            assert "language.old" not in reader and "audio.b" not in reader
            assert reader.read("vision.a.weight").tolist() == [[0, 1, 2], [3, 4, 5]]
            assert (reader.step, reader.job) == (3, {"name": "x"})


def test_weights_come_back_as_they_were(tmp_path: Path) -> None:
    save_weights(str(tmp_path))
    found = load_weights(tmp_path)
    assert {name: weight.tolist() for name, weight in found.items()} == {
        name: weight.tolist() for name, weight in WEIGHTS.items()
    }


def test_what_is_no_weight_has_no_name_and_16_bits_become_32(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    weight = torch.ones(2, dtype=torch.bfloat16)
    chunks = [Chunk("m.w", (2,), (0,), weight), Chunk("m@num_updates", (), (), torch.tensor(4))]
    sums = save_module(f"{store.begin(4)}/m", chunks)
    store.commit(Manifest(4, {}, {f"m/{name}": digest for name, digest in sums.items()}))
    with CheckpointReader(tmp_path) as reader:
        assert reader.names == ["m.w"]
        assert reader.read("m.w").dtype == "float32"


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-00000004").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"has no manifest\.json"):
        load_weights(tmp_path)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    file = Path(save_weights(str(tmp_path))) / "vision" / "__0_0.distcp"
    file.write_bytes(file.read_bytes() + b"!")
    with pytest.raises(CheckpointError, match=r"vision/__0_0\.distcp changed since it was saved"):
        load_weights(tmp_path)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    file = Path(save_weights(str(tmp_path))) / "language" / "__0_0.distcp"
    file.unlink()
    with CheckpointReader(tmp_path) as reader:
        with pytest.raises(CheckpointError, match=r"cannot read .*language: .*__0_0\.distcp"):
            reader.read("language.b")
        with pytest.raises(CheckpointError, match=r"language/__0_0\.distcp is gone"):
            reader.verify()
