"""Whatever befalls a run, it ends as if nothing had: same samples, same bits, nothing left over.

Faults strike at random, but the same ones each time: ``pytest -k run-3`` repeats a run alone.
CHAOS_FAULTS says how many faults there are.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.audit import Traces, traces_of, unfinished
from tests.chaos.draw import DECK, Draw, draws
from tests.chaos.figures import Figures
from tests.chaos.jobs import chaos_job, marks_folder
from tests.chaos.nodes import Nodes
from tests.chaos.runs import run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

_NUM_FAULTS = int(os.environ.get("CHAOS_FAULTS", len(DECK)))


@pytest.mark.parametrize("draw", draws(_NUM_FAULTS), ids=lambda draw: f"run-{draw.number}")
def test_a_run_ends_as_if_nothing_had_befallen_it(
    draw: Draw,
    nodes: Nodes,
    undisturbed: Callable[[str], Traces],
    figures: Figures,
    tmp_path: Path,
) -> None:
    expected = undisturbed(draw.layout)
    output = tmp_path / "run"
    outcome = run(chaos_job(draw.layout, output, draw.faults), nodes, draw.faults)
    figures.add(draw.faults, outcome)
    found = f"{draw}\n{_failures(output)}\n{outcome.log}"
    assert outcome.status == 0, found
    assert not _not_struck(draw, output), found
    left = traces_of(output)
    assert left.times_seen == {1}, found
    assert left.differences_to(expected) == [], found
    assert unfinished(output) == [], found
    assert nodes.left_over() == [], found


def _not_struck(draw: Draw, output: Path) -> list[str]:
    return [str(f) for f in draw.faults if not (marks_folder(output) / f.name).exists()]


def _failures(output: Path) -> str:
    path = output / "failures.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return "\n".join(json.loads(line)["headline"] for line in lines)
