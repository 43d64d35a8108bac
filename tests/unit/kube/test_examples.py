"""The examples and overlays in deploy/: they are what the command prints."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from disagg_train.cli import main
from disagg_train.config.load import read_content
from disagg_train.config.outline import outline_of

_ROOT = Path(__file__).parents[3]
_DEPLOY = _ROOT / "deploy"
_JOBS = ["disjoint", "colocated"]
_OVERLAYS = sorted((_DEPLOY / "kustomize" / "overlays").iterdir())
_REWRITE = "run: disagg-train manifest deploy/examples/{0}.yaml > deploy/examples/{0}.manifest.yaml"


def _printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["manifest", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("job", _JOBS)
def test_an_example_is_what_the_command_prints(
    job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = _printed(capsys, str(_DEPLOY / "examples" / f"{job}.yaml"))
    kept = (_DEPLOY / "examples" / f"{job}.manifest.yaml").read_text()
    assert printed == kept, _REWRITE.format(job)


def test_the_base_is_the_disjoint_example() -> None:
    base = (_DEPLOY / "kustomize" / "base" / "rayjob.yaml").read_text()
    assert base == (_DEPLOY / "examples" / "disjoint.manifest.yaml").read_text()


def test_examples_are_in_the_image_s_versions() -> None:
    for job in _JOBS:
        version = outline_of(
            read_content(_DEPLOY / "examples" / f"{job}.yaml")
        ).kubernetes.ray_version
        assert f"ray=={version}" in (_ROOT / "constraints.txt").read_text().splitlines()


def _kustomization(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert content["kind"] == "Kustomization"
    return content


def _resources(folder: Path) -> list[dict[str, Any]]:
    found = []
    for name in _kustomization(folder)["resources"]:
        path = (folder / name).resolve()
        found += _resources(path) if path.is_dir() else yaml.safe_load_all(path.read_text())
    return found


def _is_target(target: dict[str, str], resource: dict[str, Any]) -> bool:
    return (f"{target['group']}/{target['version']}", target["kind"]) == (
        resource["apiVersion"],
        resource["kind"],
    )


def _merged(base: Any, patch: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(patch, dict):
        return patch
    return base | {key: _merged(base.get(key), value) for key, value in patch.items()}


def test_there_is_an_overlay_for_every_queue() -> None:
    assert [folder.name for folder in _OVERLAYS] == ["kai", "kueue", "volcano"]


@pytest.mark.parametrize("folder", _OVERLAYS, ids=lambda folder: folder.name)
def test_an_overlay_patches_what_is_there_into_what_the_command_prints(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resources = _resources(folder)
    for patch in _kustomization(folder)["patches"]:
        change = yaml.safe_load((folder / patch["path"]).read_text())
        del change["metadata"]["name"]
        (at,) = [n for n, each in enumerate(resources) if _is_target(patch["target"], each)]
        resources[at] = _merged(resources[at], change)
    assert _ray(resources) == _ray(_of_the_command(folder, capsys))


@pytest.mark.parametrize("folder", _OVERLAYS, ids=lambda folder: folder.name)
def test_kustomize_builds_an_overlay(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("kustomize"):
        command = ["kustomize", "build"]
    elif shutil.which("kubectl"):
        command = ["kubectl", "kustomize"]
    else:
        pytest.skip("neither kustomize nor kubectl is installed")
    built = subprocess.run(
        [*command, str(folder)], capture_output=True, text=True, timeout=60, check=True
    )
    assert _ray(list(yaml.safe_load_all(built.stdout))) == _ray(_of_the_command(folder, capsys))


def _of_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    job = str(_DEPLOY / "examples" / "disjoint.yaml")
    queue = ("--queue", folder.name, "--queue-name", "training")
    return list(yaml.safe_load_all(_printed(capsys, job, *queue)))


def _ray(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = (each for each in objects if each["kind"] == "RayJob")
    return found
