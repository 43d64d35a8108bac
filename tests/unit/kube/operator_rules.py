"""What the KubeRay operator, Kubernetes and Ray refuse beyond what the CRDs' schemas say."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tests.unit.kube.jobs import cluster_of

_DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LONGEST = {"RayJob": 47, "RayCluster": 53}
_RAY_PORTS = range(10002, 20000)
"""Ray's own workers listen on these."""
_RESOURCE_PARAMETERS = {"num-cpus", "num-gpus", "memory", "resources"}
_REFUSED_VARIABLES = {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"}


def broken_rules(ray: Mapping[str, Any]) -> list[str]:
    """Return what of a RayJob or RayCluster would be refused; nothing where all is well."""
    cluster = cluster_of(ray)
    found = [*_of_name(ray), *_of_auth(cluster), *_of_groups(cluster)]
    if ray["kind"] == "RayJob":
        found += _of_job(ray["spec"])
    for template in templates(ray):
        found += _of_pod(template["spec"])
    return found


def templates(ray: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return all pod templates."""
    cluster = cluster_of(ray)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    found = [group["template"] for group in groups]
    if ray["kind"] == "RayJob":
        found.append(ray["spec"]["submitterPodTemplate"])
    return found


def _of_name(ray: Mapping[str, Any]) -> Iterator[str]:
    name = ray["metadata"]["name"]
    if not _DNS_LABEL.fullmatch(name) or len(name) > _LONGEST[ray["kind"]]:
        yield f"name {name}"


def _of_job(spec: Mapping[str, Any]) -> Iterator[str]:
    if spec.get("suspend") and not spec["shutdownAfterJobFinishes"]:
        yield "suspended, but not shut down when finished"
    if spec["ttlSecondsAfterFinished"] and not spec["shutdownAfterJobFinishes"]:
        yield "a time to live of what is not shut down"
    if spec["submissionMode"] in ("SidecarMode", "HTTPMode") and "submitterPodTemplate" in spec:
        yield "a submitter where there is none"
    if spec["backoffLimit"] < 0 or spec.get("activeDeadlineSeconds", 1) <= 0:
        yield "a negative limit"


def _of_auth(cluster: Mapping[str, Any]) -> Iterator[str]:
    version = tuple(map(int, cluster.get("rayVersion", "0").split(".")))
    if cluster["authOptions"]["mode"] == "token" and version < (2, 52, 0):
        yield "tokens in a Ray that knows none"


def _of_groups(cluster: Mapping[str, Any]) -> Iterator[str]:
    names = [group["groupName"] for group in cluster["workerGroupSpecs"]]
    if len(set(names)) < len(names) or not all(map(_DNS_LABEL.fullmatch, names)):
        yield f"names of groups {names}"
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        parameters = group["rayStartParams"]
        if not all(isinstance(value, str) for value in parameters.values()):
            yield "a parameter of ray start that is no text"
        if "labels" in parameters:
            yield "labels in rayStartParams"
        if group.get("resources") and _RESOURCE_PARAMETERS & parameters.keys():
            yield "resources in two places"
        if any(key.startswith("ray.io/") for key in group.get("labels", {})):
            yield "a label that Ray sets itself"
        if not group["template"]["spec"]["containers"]:
            yield "a pod without containers"
    for group in cluster["workerGroupSpecs"]:
        if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            yield f"replicas of {group['groupName']}"


def _of_pod(pod: Mapping[str, Any]) -> Iterator[str]:
    (container,) = pod["containers"]
    variables = [entry["name"] for entry in container["env"]]
    if len(set(variables)) < len(variables) or _REFUSED_VARIABLES & set(variables):
        yield f"environment {variables}"
    volumes = {volume["name"] for volume in pod.get("volumes", ())}
    mounts = container.get("volumeMounts", ())
    if volumes != {mount["name"] for mount in mounts}:
        yield "volumes that are not mounted, or the reverse"
    if len({mount["mountPath"] for mount in mounts}) < len(mounts):
        yield "two volumes at one path"
    if any(port["containerPort"] in _RAY_PORTS for port in container.get("ports", ())):
        yield "a port of Ray's workers"
    sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {"seconds": 1})
    if not 0 < sleep["seconds"] < pod["terminationGracePeriodSeconds"]:
        yield "a sleep beyond the pod's end"
    for resource, amount in container["resources"]["limits"].items():
        if "/" in resource and container["resources"]["requests"][resource] != amount:
            yield f"{resource} is overcommitted"
