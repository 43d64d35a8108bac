"""``disagg-train profile`` refuses what cannot be measured before any rank starts."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from disagg_train.cli import main
from disagg_train.config.load import load_job
from disagg_train.profile_command import link_table, module_table
from tests.unit.config.jobs import JOB
from tests.unit.planner.measured import link, module_of

_JOB = str(Path(__file__).parents[2] / "examples" / "digits.yaml")


@pytest.mark.parametrize(
    ("degrees", "message"),
    [
        ("vision", "not of the form MODULE:AXIS=N"),
        ("sound:tp=2", "degrees of ['sound']"),
        ("vision:tp=3", "does not divide the 2 ranks of group 'encoders'"),
    ],
)
def test_degrees_that_cannot_be_are_refused(
    degrees: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["profile", _JOB, "--degrees", degrees, "--folder", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err


def test_people_read_coefficients_and_errors() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    job = load_job(JOB)
    console.print(module_table([module_of(job, name) for name in job.modules]))
    console.print(link_table([link(3e9, 1e-5, crosses_nodes=True)]))
    printed = console.export_text()
    for words in ("vision", "tp2", "backward", "us/token", "0.0%, 0.0%", "nodes", "3"):
        assert words in printed
