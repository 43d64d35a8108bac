"""Every manifest against the operator's own schemas, in which unknown fields are refused.

The schemas are another project's and so not in this repository; they are looked for beside it.
"""

from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.unit.kube.jobs import Case, every_case, objects

_FOLDER = Path(__file__).parents[3].parent / "shared" / "kuberay"
_FILES = {"RayJob": "ray.io_rayjobs.yaml", "RayCluster": "ray.io_rayclusters.yaml"}

pytestmark = pytest.mark.skipif(
    not _FOLDER.is_dir(),
    reason="KubeRay's resource definitions are not beside the repository, in ../shared/kuberay",
)


def strict(schema: Any) -> Any:
    """Return a structural schema of Kubernetes as JSON Schema that refuses unknown fields."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {
        key: {name: strict(each) for name, each in value.items()}
        if key == "properties"
        else strict(value)
        for key, value in schema.items()
    }
    open_ended = "additionalProperties" in schema or schema.get(
        "x-kubernetes-preserve-unknown-fields"
    )
    if "properties" in schema and not open_ended:
        found["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        found["type"] = ["integer", "string"]
    return found


@cache
def _validator(kind: str) -> jsonschema.Draft202012Validator:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definition = yaml.load((_FOLDER / _FILES[kind]).read_text(), Loader=loader)
    (schema,) = (
        version["schema"]["openAPIV3Schema"]
        for version in definition["spec"]["versions"]
        if version["name"] == "v1"
    )
    return jsonschema.Draft202012Validator(strict(schema))


def _refused(ray: Mapping[str, Any]) -> list[str]:
    return [
        f"{error.json_path}: {error.message}" for error in _validator(ray["kind"]).iter_errors(ray)
    ]


@every_case
def test_every_manifest_is_what_the_operator_reads(case: Case) -> None:
    assert _refused(case.ray()) == []


@pytest.mark.parametrize("path", [(), ("spec",), ("spec", "rayClusterSpec", "headGroupSpec")])
def test_a_field_that_the_operator_does_not_know_is_refused(path: tuple[str, ...]) -> None:
    ray = deepcopy(objects()[1])
    node = ray
    for part in path:
        node = node[part]
    node["unheardOf"] = 1
    assert any("unheardOf" in each for each in _refused(ray))


def test_a_value_of_another_type_is_refused() -> None:
    ray = deepcopy(objects()[1])
    ray["spec"]["backoffLimit"] = "0"
    assert any("backoffLimit" in each for each in _refused(ray))


def test_numbers_and_texts_are_both_amounts() -> None:
    schema = strict({"anyOf": [{"type": "string"}], "x-kubernetes-int-or-string": True})
    assert schema["type"] == ["integer", "string"]
