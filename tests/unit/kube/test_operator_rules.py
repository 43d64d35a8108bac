"""No manifest breaks a rule of the operator's; each rule is seen to find what breaks it."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from tests.unit.kube.jobs import Case, every_case, objects
from tests.unit.kube.operator_rules import broken_rules

Break = Callable[[dict[str, Any]], Any]


@every_case
def test_the_operator_takes_every_manifest(case: Case) -> None:
    assert broken_rules(case.ray()) == []


def _head(ray: dict[str, Any]) -> dict[str, Any]:
    return ray["spec"]["rayClusterSpec"]["headGroupSpec"]


def _worker(ray: dict[str, Any]) -> dict[str, Any]:
    return ray["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]


def _container(group: dict[str, Any]) -> dict[str, Any]:
    return group["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda ray: ray["metadata"].update(name="x" * 48), "name"),
        (lambda ray: ray["metadata"].update(name="1job"), "name"),
        (lambda ray: ray["spec"].update(shutdownAfterJobFinishes=False), "time to live"),
        (lambda ray: ray["spec"].update(backoffLimit=-1), "negative"),
        (lambda ray: ray["spec"].update(submissionMode="HTTPMode"), "submitter"),
        (lambda ray: ray["spec"]["rayClusterSpec"].update(rayVersion="2.51.9"), "tokens"),
        (lambda ray: _worker(ray).update(groupName="language"), "names"),
        (lambda ray: _worker(ray).update(replicas=9), "replicas"),
        (lambda ray: _worker(ray)["labels"].update({"ray.io/x": "y"}), "Ray sets"),
        (lambda ray: _worker(ray)["rayStartParams"].update(labels="a=b"), "labels"),
        (lambda ray: _worker(ray)["rayStartParams"].update({"num-cpus": 2}), "no text"),
        (lambda ray: _worker(ray).update(resources={"CPU": "2"}), "two places"),
        (
            lambda ray: _container(_head(ray))["ports"].append({"containerPort": 10500}),
            "port",
        ),
        (
            lambda ray: _container(_head(ray))["env"].append({"name": "RAY_REDIS_ADDRESS"}),
            "environment",
        ),
        (lambda ray: _container(_head(ray))["volumeMounts"].pop(), "not mounted"),
        (
            lambda ray: _worker(ray)["template"]["spec"].update(terminationGracePeriodSeconds=25),
            "sleep",
        ),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_found(spoil: Break, said: str) -> None:
    ray = deepcopy(objects()[1])
    spoil(ray)
    assert any(said in rule for rule in broken_rules(ray))
