"""Ranks in processes of their own, forked after one slow import.

``tests/unit/conftest.py`` says what the fork server imports.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run_ranks(what: Callable[..., None], num_ranks: int, folder: Path, *first: Any) -> list[Any]:
    """Run ``what(rank, *first, folder)`` on every rank; return what each left there.

    Args:
        what: leaves ``<rank>.pickle`` in the folder; of a module without tests, as it is imported
            by name.
        num_ranks: how many.
        folder: to be left in.
        first: arguments before the folder.
    """
    from torch.multiprocessing import start_processes

    start_processes(what, (*first, folder), num_ranks, start_method="forkserver")
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(num_ranks)]
