"""Programs that start a Ray of their own, on several nodes: each runs in a process of its own."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path


def run_program(module: str, timeout_s: float) -> str:
    """Run ``python -m module`` with an empty folder as its argument; return what it printed.

    It has to end by itself, and well.
    """
    with tempfile.TemporaryDirectory(
        prefix="dt-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        (Path(folder) / "ray").mkdir()  # where Ray writes the address of its last cluster
        run = subprocess.run(
            [sys.executable, "-m", module, folder],
            capture_output=True,
            text=True,
            env={**os.environ, "RAY_TMPDIR": folder},
            timeout=timeout_s,
            check=False,
        )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout
