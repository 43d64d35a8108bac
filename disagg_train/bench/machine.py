"""What a measurement was made on."""

import subprocess
from pathlib import Path

from disagg_train.metrics.hardware import hardware

__all__ = ["commit", "hardware"]

_GIT_S = 5.0


def commit() -> str:
    """Return the checkout's commit, with ``+`` where tracked files differ; empty outside git."""
    folder = Path(__file__).parent
    try:
        head = _git(folder, "rev-parse", "--short=12", "HEAD")
        return head + "+" * bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=_GIT_S, check=True
    )
    return done.stdout.strip()
