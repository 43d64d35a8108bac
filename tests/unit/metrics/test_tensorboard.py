"""TensorBoard's own reader finds every step once, also after a run went back or was resumed."""

import subprocess
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from disagg_train.metrics.tensorboard import TensorBoard
from tests.unit.metrics.steps import evaluation, measures


def _scalars(folder: Path, tag: str = "train/loss") -> list[tuple[int, float]]:
    found = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in found.Scalars(tag)]


def _write(folder: Path, begin: int, end: int, loss: float) -> None:
    board = TensorBoard(folder, begin)
    for step in range(begin, end):
        board.add_step(measures(step, loss))
    board.close(ok=True)


def test_steps_and_evaluations_are_there_as_they_are_written(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, 0)
    board.add_step(measures(0, 4.0))
    board.add_evaluation(evaluation(1))
    assert _scalars(tmp_path) == [(0, 4.0)]
    assert _scalars(tmp_path, "evaluation/token_f1") == [(0, 0.75)]
    assert _scalars(tmp_path, "modules/vision/bubble") == [(0, 0.75)]
    board.close(ok=True)


def test_steps_that_run_again_replace_those_that_were_taken_back(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, 0)
    for step in range(4):
        board.add_step(measures(step))
    board.add_evaluation(evaluation(2))
    board.rewind(2)
    assert _scalars(tmp_path) == [(0, 1.0), (1, 1.0)]
    assert _scalars(tmp_path, "evaluation/loss") == [(1, 1.0)]
    board.add_step(measures(2, 5.0))
    board.close(ok=True)
    assert _scalars(tmp_path) == [(0, 1.0), (1, 1.0), (2, 5.0)]


def test_a_resumed_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    _write(tmp_path, 0, 5, loss=1.0)
    _write(tmp_path, 3, 5, loss=2.0)
    assert len(list(tmp_path.iterdir())) == 2
    assert _scalars(tmp_path) == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_a_new_run_removes_the_files_of_an_earlier_one(tmp_path: Path) -> None:
    _write(tmp_path, 0, 5, loss=1.0)
    (tmp_path / "notes.txt").touch()
    _write(tmp_path, 0, 1, loss=2.0)
    assert _scalars(tmp_path) == [(0, 2.0)]
    assert (tmp_path / "notes.txt").exists()


def test_neither_torch_nor_tensorflow_is_loaded() -> None:
    program = (
        "import sys, disagg_train.metrics.tensorboard\n"
        "print(sorted({'torch', 'tensorflow', 'ray'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout == "[]\n"
