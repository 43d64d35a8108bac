"""Runs an example notebook as people do: in a kernel of its own, and interrupts it by hand."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples" / "notebooks"
_CELL_S, _POLL_S = 400, 0.1


def run_notebook(name: str, folder: Path, interrupt_when: Path | None = None) -> Any:
    """Run an example from start to end; return the executed notebook.

    Args:
        name: of the example.
        folder: that it runs in.
        interrupt_when: a file; the cell tagged ``interrupt`` is interrupted, as a notebook's stop
            button does it, once this has three lines.
    """
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    client = NotebookClient(notebook, timeout=_CELL_S, resources={"metadata": {"path": folder}})
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            if "interrupt" in cell.metadata.get("tags", ()):
                assert interrupt_when is not None
                threading.Thread(
                    target=_interrupt, args=(client, interrupt_when), daemon=True
                ).start()
            client.execute_cell(cell, index)
    return notebook


def _interrupt(client: NotebookClient, when: Path) -> None:
    until_s = time.monotonic() + _CELL_S
    while time.monotonic() < until_s:
        if when.exists() and when.read_text().count("\n") >= 3:
            assert client.km is not None
            asyncio.run(client.km.interrupt_kernel())
            return
        time.sleep(_POLL_S)


def shown(cell: Any, kind: str = "text/plain") -> str:
    """Return what a cell shows, all of one kind; what it printed counts as text."""
    found = []
    for output in cell.outputs:
        if output.output_type == "stream":
            found.append(output.text)
        elif output.output_type == "error":
            found.append(f"{output.ename}: {output.evalue}")
        else:
            found.append(output.data.get(kind, ""))
    return "\n".join(found)
