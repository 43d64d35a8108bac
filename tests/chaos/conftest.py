"""The nodes that faults befall, and the runs that none befell."""

import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.chaos.audit import Traces
    from tests.chaos.figures import Figures
    from tests.chaos.nodes import Nodes


@pytest.fixture(scope="session")
def nodes() -> "Iterator[Nodes]":
    from tests.chaos.nodes import several_nodes

    with several_nodes() as started:
        yield started


@pytest.fixture(scope="session")
def undisturbed(
    nodes: "Nodes", tmp_path_factory: pytest.TempPathFactory
) -> "Callable[[str], Traces]":
    """Returns what a run of a layout leaves that nothing befalls; each is run once."""
    from tests.chaos.audit import traces_of
    from tests.chaos.jobs import chaos_job
    from tests.chaos.runs import run

    @cache
    def traces(layout: str) -> "Traces":
        output = tmp_path_factory.mktemp("undisturbed") / layout
        outcome = run(chaos_job(layout, output), nodes)
        assert outcome.status == 0, outcome.log
        found = traces_of(output)
        assert found.times_seen == {1}
        return found

    return traces


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest) -> "Iterator[Figures]":
    """Collects figures, and prints them as JSON at the end; CHAOS_FIGURES names a file for them."""
    from tests.chaos.figures import Figures

    found = Figures()
    yield found
    text = json.dumps(found.as_dict(), indent=2)
    if path := os.environ.get("CHAOS_FIGURES"):
        Path(path).write_text(text + "\n")
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{text}")
