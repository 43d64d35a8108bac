"""The status of a process survives its end, and what others left for the end is still done."""

import subprocess
import sys

import pytest

_RAY = "import sys; sys.modules['ray'] = sys"
_CRASH = """
class Crash:
    def __del__(self):
        import os
        os.kill(os.getpid(), 11)

sys.crash = Crash()  # what a destructor of Ray does at times
"""
_BEGIN = "import atexit; from disagg_train.process_end import QuickEnd; end = QuickEnd()"
_LATER = "atexit.register(print, 'cleaned up')"


def _run(*lines: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("status", [0, 1, 130])
def test_a_crash_of_destructors_does_not_change_the_status(status: int) -> None:
    done = _run(_BEGIN, _RAY, _CRASH, _LATER, f"end.status = {status}; sys.exit({status})")
    assert (done.returncode, done.stdout) == (status, "cleaned up\n")


def test_an_exception_that_nobody_caught_is_a_failure() -> None:
    done = _run(_BEGIN, _RAY, "raise ValueError('a mistake')")
    assert done.returncode == 1
    assert "a mistake" in done.stderr


def test_a_process_without_ray_ends_as_always() -> None:
    done = _run(_BEGIN, "import sys", "sys.exit(3)")
    assert done.returncode == 3
