"""The images: linted, pinned, without root, and of the versions that are tested."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[3]
_FILES = [_ROOT / "deploy" / "Dockerfile", _ROOT / "deploy" / "Dockerfile.cpu"]

every_file = pytest.mark.parametrize("file", _FILES, ids=lambda file: file.name)


@every_file
def test_the_linter_finds_nothing(file: Path) -> None:
    beside = Path(sys.executable).with_name("hadolint")
    linter = str(beside) if beside.exists() else shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not installed; it comes with the extra `dev`")
    run = subprocess.run([linter, str(file)], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (0, "")


@every_file
def test_base_images_have_a_version(file: Path) -> None:
    stages = re.findall(r"^FROM (\S+)", file.read_text(), re.MULTILINE)
    assert len(stages) == 2
    assert all(re.search(r":\d+\.\d+\.\d+-", stage) for stage in stages)


@every_file
def test_the_image_is_of_the_tested_versions_and_runs_without_root(file: Path) -> None:
    text = file.read_text()
    pip = re.findall(r"pip install (?:.|\\\n)*?$", text, re.MULTILINE)
    assert pip
    assert all("--constraint constraints.txt" in command for command in pip)
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE) == ["1000:1000"]
    assert "\nHEALTHCHECK " in text


@every_file
def test_what_is_copied_is_there(file: Path) -> None:
    for line in re.findall(r"^COPY (?!--from)(.+)", file.read_text(), re.MULTILINE):
        *sources, _ = line.split()
        assert all((_ROOT / source).exists() for source in sources)


def test_torch_is_the_one_that_is_pinned() -> None:
    (version,) = re.findall(r"torch==(\S+)", _FILES[0].read_text())
    assert f"torch=={version}" in (_ROOT / "constraints.txt").read_text().splitlines()
