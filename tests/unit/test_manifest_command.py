"""``disagg-train manifest``: options stand for fields of the job, and nothing is opened."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from disagg_train.cli import main
from disagg_train.config.load import load_job

_DEPLOY = Path(__file__).parents[2] / "deploy"
_DISJOINT, _COLOCATED = (str(_DEPLOY / "examples" / f"{n}.yaml") for n in ("disjoint", "colocated"))


def _objects(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert main(["manifest", *arguments]) == 0
    return list(yaml.safe_load_all(capsys.readouterr().out))


def test_options_go_before_the_job_file(capsys: pytest.CaptureFixture[str]) -> None:
    config_map, ray = _objects(
        capsys,
        _COLOCATED,
        *("--kind", "rayCluster", "--queue", "volcano", "--queue-name", "on"),
        *("--image", "mine:2", "--namespace", "team-b"),
    )
    assert ray["kind"] == "RayCluster"
    assert ray["metadata"]["labels"]["volcano.sh/queue-name"] == "on"
    assert config_map["metadata"]["namespace"] == ray["metadata"]["namespace"] == "team-b"
    (container,) = ray["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert container["image"] == "mine:2"


def test_checkpoints_and_data_may_be_on_the_cluster_only(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not Path("/data/models").exists()
    assert len(_objects(capsys, _DISJOINT)) == 2


def test_the_driver_reads_the_job_that_was_printed(capsys: pytest.CaptureFixture[str]) -> None:
    config_map, _ = _objects(capsys, _COLOCATED, "--set", "train.steps=7")
    job = load_job(yaml.safe_load(config_map["data"]["job.yaml"]))
    assert job.train.steps == 7
    assert job.output == "/checkpoints/digits-colocated"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--queue", "kai"), "kubernetes.queue.name"),
        (("--namespace", "A B"), "kubernetes.namespace"),
        (("--set", "device=auto"), "device: auto"),
        (("--set", "modules.language.parallel.dp=7"), "modules.language.parallel: tp*cp*pp*dp"),
    ],
)
def test_mistakes_are_told_and_nothing_is_printed(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["manifest", _COLOCATED, *arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err


def test_a_job_without_the_section_is_told_what_to_add(
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = str(_DEPLOY.parent / "examples" / "digits.yaml")
    assert main(["manifest", job, "--image", "a:1"]) == 1
    assert "kubernetes.checkpoints: this field is required" in capsys.readouterr().err
