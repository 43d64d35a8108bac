"""The example notebooks run from start to end, one of them interrupted in the middle."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ray.notebooks import run_notebook, shown

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A short path, since Ray puts sockets below it; all that kernels write is there."""
    with (
        tempfile.TemporaryDirectory(prefix="dt-", dir="/tmp", ignore_cleanup_errors=True) as name,
        pytest.MonkeyPatch.context() as environment,
    ):
        (Path(name) / "ray").mkdir()  # where Ray writes the address of its last cluster
        for variable in ("TMPDIR", "RAY_TMPDIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
            environment.setenv(variable, name)
        environment.setenv("RAY_AUTH_MODE", "disabled")
        environment.delenv("RAY_ADDRESS", raising=False)
        yield Path(name)


@pytest.fixture(scope="module")
def first(folder: Path) -> Any:
    return run_notebook("first_run.ipynb", folder)


@pytest.fixture(scope="module")
def resumed(folder: Path) -> Any:
    metrics = folder / "runs" / "resumed" / "metrics.jsonl"
    return run_notebook("attach_and_resume.ipynb", folder, metrics)


def _of(notebook: Any, text: str) -> Any:
    """Return the one code cell whose source has a text."""
    code = (cell for cell in notebook.cells if cell.cell_type == "code")
    (cell,) = (cell for cell in code if text in cell.source)
    return cell


def test_a_cell_shows_progress_to_the_last_step(first: Any) -> None:
    cell = _of(first, "trainer.run()")
    assert len(cell.outputs) == 1, "one output that is replaced, and nothing that Ray says"
    assert "30/30" in shown(cell)
    assert "held out after 30 steps" in shown(cell)


def test_cells_show_plan_table_curve_and_report(first: Any) -> None:
    assert "runner-up" in shown(_of(first, "trainer.plan("), "text/html")
    assert "vision.forward_s" in shown(_of(first, ".tail()"), "text/html")
    assert shown(_of(first, ".plot("), "image/png")
    assert "iframe" in shown(_of(first, "trainer.report()"), "text/html")


def test_the_layout_of_the_first_run_trains_as_one_process_does(first: Any) -> None:
    assert "ok=True" in shown(_of(first, "trainer.verify("))


def test_an_interrupted_cell_saves(resumed: Any) -> None:
    cell = _of(resumed, "overwrite=True")
    assert "KeyboardInterrupt" in shown(cell)
    stopped = re.search(r"stopped after (\d+) steps; a checkpoint is saved", shown(cell))
    assert stopped is not None
    done = int(stopped[1])
    assert 3 <= done < 2000
    assert f"{done} steps, checkpoints after [{done}]" in shown(_of(resumed, "done = len("))


def test_an_interrupted_cell_leaves_the_cluster_clean(resumed: Any) -> None:
    left = shown(_of(resumed, "def left_over"))
    assert left == "{'CPUs in use': 0.0, 'placement groups': 0, 'named actors': 0}"


def test_the_next_cell_resumes_and_another_process_looks_on(resumed: Any) -> None:
    done = int(re.findall(r"\d+", shown(_of(resumed, "done = len(")))[0])
    assert f"{done + 20}/{done + 20}" in shown(_of(resumed, 'resume="auto"'))
    seen = shown(_of(resumed, "other.communicate"))
    steps = [int(step) for step in re.findall(r"seen from elsewhere: step (\d+)", seen)]
    assert steps == list(range(done + 20))
    assert f"{done + 20} steps, finished" in seen
