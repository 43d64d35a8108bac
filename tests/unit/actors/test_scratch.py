"""A local Ray's folder goes with its driver, at the latest when the next one comes."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from actors.scratch import ScratchFolder

_HOLD = "from actors.scratch import ScratchFolder; import time; f = ScratchFolder(); "


def test_folders_of_killed_processes_go_and_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    held = subprocess.Popen(
        [sys.executable, "-c", f"{_HOLD} print(f.path, flush=True); time.sleep(60)"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert held.stdout is not None
    others = Path(held.stdout.readline().strip())
    mine = ScratchFolder()
    assert others.exists()
    held.send_signal(signal.SIGKILL)
    held.wait(10)
    ScratchFolder().remove()
    assert not others.exists()
    assert mine.path.exists()
    mine.remove()
    assert list(tmp_path.iterdir()) == []
