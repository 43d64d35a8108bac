"""Commands that need no ranks, as a user types them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from disagg_train.cli import main

_JOB = str(Path(__file__).parents[2] / "examples" / "digits.yaml")


def test_help_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from disagg_train.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'ray', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0


def test_importing_the_package_loads_neither_torch_nor_ray() -> None:
    code = "import sys, disagg_train; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0


def test_the_schema_knows_every_top_level_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    wanted = {"name", "seed", "groups", "modules", "data", "train", "output", "fallback"}
    assert wanted <= set(schema["properties"])
    assert schema["properties"]["fallback"]["description"]
    assert schema["$defs"]["SiglipModule"]["required"] == ["group"]


def test_check_prints_ranks_layouts_routes_and_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", _JOB, "--set", "train.global_batch=8"]) == 0
    printed = capsys.readouterr().out
    for word in ("ranks", "rows held", "rows needed", "routes", "F0 F1 B0 B1"):
        assert word in printed


def test_a_mistake_is_one_line_and_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", _JOB, "--set", "modules.vision.parallel.dp=3"]) == 1
    assert "group 'encoders' has 2 ranks" in capsys.readouterr().err


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "nowhere.yaml"]) == 1
    assert "nowhere.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["eval"], ["export", "out"]], ids=["eval", "export"])
def test_a_run_that_never_ended_is_refused(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *out = command
    assert main([name, str(tmp_path), *(str(tmp_path / each) for each in out)]) == 1
    assert "it is no finished checkpoint" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_source_of_ones_own_is_found_where_the_command_is_started(tmp_path: Path) -> None:
    source = "from disagg_train.data.digits import DigitsSource\n\nclass Mine(DigitsSource): pass\n"
    (tmp_path / "mine.py").write_text(source)
    command = [Path(sys.executable).parent / "disagg-train", "check", Path(_JOB).absolute()]
    done = subprocess.run(
        [*command, "--set", "data.kind=mine:Mine"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
