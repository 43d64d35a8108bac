"""A simulated job as data, tables, picture and trace; `disagg-train simulate`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from disagg_train.cli import main

JOB = str(Path(__file__).parents[3] / "examples" / "digits.yaml")
SMALL = ("--set", "train.global_batch=8")


def simulate(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["simulate", JOB, *SMALL, *arguments]) == 0
    return capsys.readouterr().out


def test_json_has_step_time_bubbles_per_module_and_bytes_per_rank(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = json.loads(simulate(capsys, "--json"))
    assert found["schedule"] == "1f1b" and found["num_microbatches"] == 2
    assert set(found["bubble"]) == set(found["busy_s"]) == {"vision", "language"}
    assert len(found["peak_bytes"]) == len(found["bubble_per_rank"]) == 4
    for module in found["bubble"]:
        computed = found["step_time_s"] * (1 - found["bubble"][module])
        assert computed == pytest.approx(found["busy_s"][module])


def test_slower_ranks_are_busy_for_longer(capsys: pytest.CaptureFixture[str]) -> None:
    fast, slow = (
        json.loads(simulate(capsys, "--json", "--tflops", tflops))["busy_s"]
        for tflops in ("2", "1")
    )
    for module in fast:
        assert slow[module] == pytest.approx(2 * fast[module])


def test_a_named_gpu_stands_for_the_four_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    quick, slow = (
        json.loads(simulate(capsys, "--json", "--gpu-kind", kind)) for kind in ("B200", "L40S")
    )
    assert quick["step_time_s"] < slow["step_time_s"]
    assert "720 GB/s in nodes of 8" in quick["costs"]


def test_an_unknown_gpu_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", JOB, "--gpu-kind", "H1000"]) == 1
    said = capsys.readouterr().err
    assert "'H1000'" in said and "H100, H200, A100, L40S, B200" in said


def test_people_read_tables_and_where_the_costs_are_from(
    capsys: pytest.CaptureFixture[str],
) -> None:
    printed = " ".join(simulate(capsys, "--tflops", "3").split())
    for words in ("step time", "bubble", "peak activations", "ranks 2-3", "3 TFLOP/s", "fp32"):
        assert words in printed


def test_a_simulated_trace_gives_the_same_step_when_it_is_simulated_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    first = json.loads(simulate(capsys, "--json", "--trace", str(tmp_path / "trace.json")))
    again = json.loads(simulate(capsys, "--json", "--from", str(tmp_path)))
    assert again["step_time_s"] == pytest.approx(first["step_time_s"], rel=0.01)
    assert again["bubble"] == pytest.approx(first["bubble"], rel=0.01)
    assert again["peak_bytes"] == first["peak_bytes"]
    assert "medians" in again["costs"]


def test_the_timeline_is_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    simulate(capsys, "--png", str(tmp_path / "step.png"))
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_a_trace_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["simulate", JOB, *SMALL, "--from", str(tmp_path)]) == 1
    assert "trace_steps" in capsys.readouterr().err


def test_a_run_of_other_stages_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    simulate(capsys, "--trace", str(tmp_path / "trace.json"))
    pipelines = ("--set", "modules.language.parallel={pp: 2}")
    layers = ("--set", "modules.language.model.num_layers=4")
    assert main(["simulate", JOB, *SMALL, *pipelines, *layers, "--from", str(tmp_path)]) == 1
    assert "'language.0', 'language.1', 'vision'" in capsys.readouterr().err


def test_simulating_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from disagg_train.cli import main\n"
        f"main(['simulate', {JOB!r}, '--json'])\n"
        "sys.exit(bool({'torch', 'ray', 'megatron'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False, text=True)
    assert done.returncode == 0
