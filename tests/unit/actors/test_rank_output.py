"""A process's output goes to a file and comes back: tried in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import ctypes, os, subprocess, sys
from actors.rank_output import RankOutput
from disagg_train.metrics.events import event

C = ctypes.CDLL(None)

def write(mark):
    print("python", mark)
    print("warning", mark, file=sys.stderr)
    os.write(1, f"descriptor {mark}\\n".encode())
    C.puts(f"c {mark}".encode())
    subprocess.run(["echo", f"child {mark}"], check=True)

output, folder = RankOutput(), sys.argv[1]
write("before")
for number in range(2):
    assert output.keep(f"{folder}/logs/a-{number}.log", "a", number, "a title") == ""
    write(f"job {number}")
    event("set up", 3)
    output.let_go()
    output.let_go()
assert output.keep(f"{folder}/logs/a-0.log", "a", 0, "again") == ""
open_before = len(os.listdir("/proc/self/fd"))
assert output.keep(f"{folder}/logs/a-0.log", "a", 0, "and again") == ""
assert len(os.listdir("/proc/self/fd")) == open_before
output.let_go()
print("refused:", output.keep(f"{folder}/file/logs/a.log", "a", 0, "no folder"))
write("after")
"""


def _run(folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "file").write_text("")
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_output_of_all_kinds_follows_the_job_and_comes_back(tmp_path: Path) -> None:
    run = _run(tmp_path)
    kinds = ["python", "descriptor", "c", "child"]
    for number in range(2):
        kept = (tmp_path / "logs" / f"a-{number}.log").read_text()
        for kind in [*kinds, "warning"]:
            assert kept.count(f"{kind} job {number}\n") == 1
        assert f"INFO group=a rank={number} step=3 set up\n" in kept
        assert "before" not in kept and "after" not in kept
        assert f"job {number}" not in run.stdout + run.stderr
    for mark in ("before", "after"):
        for kind in kinds:
            assert run.stdout.count(f"{kind} {mark}\n") == 1
        assert f"warning {mark}\n" in run.stderr


def test_a_file_is_gone_on_with_after_a_line_that_says_whose_it_is(tmp_path: Path) -> None:
    run = _run(tmp_path)
    lines = (tmp_path / "logs" / "a-0.log").read_text().splitlines()
    titles = [line.split(" ", 2)[2] for line in lines if line.startswith("==== ")]
    about = ["a title", "again", "and again"]
    assert titles == [f"group a rank 0, {title}" for title in about]
    assert f"goes to {tmp_path}/logs/a-0.log" in run.stdout


def test_a_file_that_cannot_be_made_leaves_the_output_where_it_is(tmp_path: Path) -> None:
    run = _run(tmp_path)
    assert f"refused: {tmp_path}/file/logs/a.log: Not a directory" in run.stdout
