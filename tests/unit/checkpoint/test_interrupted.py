"""A save that is killed at any moment, or fails, leaves a checkpoint to go on from."""

import json
import multiprocessing
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from disagg_train.checkpoint.manifest import CheckpointStore
from tests.checkpoints import load_weights
from tests.unit.checkpoint.saving_ranks import DEADLINE_S, NUM_RANKS, save_once, save_twice, values

_MOMENTS = 20
_SOON_S = 20.0


def _run(what: Callable[..., None], out: Path, *arguments: Any) -> list[int]:
    """Run all ranks; return their exit codes."""
    context = multiprocessing.get_context("forkserver")
    out.mkdir()
    ranks = [context.Process(target=what, args=(r, *arguments, out)) for r in range(NUM_RANKS)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(_SOON_S)
        assert rank.exitcode is not None, "a rank waits for one that is gone"
    return [rank.exitcode for rank in ranks]


def _left(out: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / f"{rank}.json").read_text())
    return found


def test_a_save_killed_at_any_moment_leaves_a_checkpoint_that_loads(tmp_path: Path) -> None:
    assert _SOON_S < DEADLINE_S
    assert _run(save_twice, tmp_path / "whole", tmp_path / "all", 0, None) == [0, 0]
    counts = [_left(tmp_path / "whole", rank)["moments"] for rank in range(NUM_RANKS)]
    assert min(counts) > 3
    moments = [(rank, last) for rank in range(NUM_RANKS) for last in range(counts[rank])]
    found = set()
    for number, (victim, last) in enumerate(random.Random(6).sample(moments, _MOMENTS)):
        out, checkpoints = tmp_path / f"{number}", tmp_path / f"{number}-checkpoints"
        codes = _run(save_twice, out, checkpoints, victim, last)
        assert codes[victim] == -signal.SIGKILL
        manifest, notes = CheckpointStore(str(checkpoints)).newest_sound()
        assert manifest is not None and notes == []
        weights = load_weights(str(checkpoints))
        assert torch.equal(torch.from_numpy(weights["m.w"]), values(manifest.step))
        found.add(manifest.step)
    assert found == {1, 2}


def test_a_full_disk_of_one_rank_is_told_by_all_and_names_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "__1_0.distcp").symlink_to("/dev/full")
    assert _run(save_once, tmp_path / "out", folder) == [0, 0]
    for rank in range(NUM_RANKS):
        error = _left(tmp_path / "out", rank)["error"]
        assert error.startswith(f"CheckpointError: cannot write {folder}: rank 1: OSError")
        assert "No space left on device" in error
        assert "__1_0.distcp" in error
