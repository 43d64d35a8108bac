"""The pods of a job: Ray's head, a group of workers per actor group, and a RayJob's submitter."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from disagg_train.config.kubernetes import (
    GroupPodsConfig,
    KubernetesConfig,
    PodPlacement,
    TolerationConfig,
)
from disagg_train.config.modules import tp_ranks
from disagg_train.config.outline import JobOutline
from disagg_train.errors import ConfigError
from disagg_train.kube.quantities import PodShare, share_on_cpus, share_on_gpus, times
from disagg_train.kube.scripts import FOLDER

Body = dict[str, Any]

GPU = "nvidia.com/gpu"
GROUP_LABEL = "disagg-train/group"
"""Label of a Ray node that says which actor group its pod was made for."""

OF_RAY = "ray.io/"
"""Begin of the labels that Ray itself gives every node."""

_USER = 1000
"""User and group of the images in deploy/."""
_ENDING_S = 15
"""Longer than a run's own grace, for its processes to end and for Kubernetes to see it."""
_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
_METRICS = {"name": "metrics", "containerPort": 8080}
"""Where Ray shows its metrics, and a PodMonitor looks for them: KubeRay's own name and default."""


def uses_gpus(job: JobOutline) -> bool:
    """Whether the job's pods ask for GPUs.

    Raises:
        ConfigError: the job leaves it to the cluster, which is made from this answer.
    """
    if job.device == "auto":
        raise ConfigError(
            "device: auto takes what a cluster has, but here the cluster is made for the job; "
            "set device: cuda or device: cpu"
        )
    return job.device == "cuda"


def grace_s(job: JobOutline) -> int:
    """Return how many seconds a pod has from the wish to stop to its end."""
    return ceil(job.recovery.grace_s) + _ENDING_S


def pod_name(group: str) -> str:
    """Return an actor group's name as Kubernetes can have it."""
    return group.lower().replace("_", "-")


def head_group(job: JobOutline, config_map: str) -> Body:
    """Return the pod of Ray's head, which runs the driver and no rank.

    Args:
        job: the job.
        config_map: of the job file and the scripts.
    """
    about = job.kubernetes
    variables = _variables(job) | {"RAY_JOB_STOP_WAIT_TIME_S": str(grace_s(job))}
    container = _container(about, "ray-head", variables, [])
    container["resources"] = _resources({"cpu": str(about.head.cpus), "memory": about.head.memory})
    container["ports"] += [{"name": n, "containerPort": port} for n, port in _PORTS.items()]
    container["lifecycle"] = {"preStop": {"exec": {"command": ["sh", f"{FOLDER}/stop.sh"]}}}
    container["volumeMounts"].append({"name": "job", "mountPath": FOLDER, "readOnly": True})
    pod = _pod(job, container, about.head)
    pod["volumes"].append({"name": "job", "configMap": {"name": config_map}})
    return {
        "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0", "num-gpus": "0"},
        "template": {"metadata": {"labels": job_labels(job)}, "spec": pod},
    }


def worker_groups(job: JobOutline) -> list[Body]:
    """Return a group of workers per actor group, with exactly the pods that its ranks fill.

    Ray counts a CPU per rank, whatever more a pod has, so that a pod takes its own ranks only.

    Raises:
        ConfigError: `kubernetes.groups` names no group, two groups' names become one, or ranks
            do not fill pods that are alike.
    """
    if unknown := sorted(set(job.kubernetes.groups) - set(job.groups)):
        raise ConfigError(
            f"kubernetes.groups has {unknown}, which are no actor groups; groups has "
            f"{sorted(job.groups)}"
        )
    names = [pod_name(name) for name in job.groups]
    for name in job.groups:
        if names.count(pod_name(name)) > 1:
            raise ConfigError(f"groups: {name!r} and another are both {pod_name(name)!r} here")
        check_dns_label(pod_name(name), f"groups.{name}")
    return [_worker_group(job, name) for name in job.groups]


def check_dns_label(name: str, field: str, most: int = 63) -> None:
    """Refuse what cannot be a name in an address.

    Raises:
        ConfigError: naming the field.
    """
    plain = name.replace("-", "a")
    is_label = plain.isascii() and plain.isalnum() and name == name.lower()
    if not (is_label and name[0].isalpha() and name[-1] != "-" and len(name) <= most):
        raise ConfigError(
            f"{field}: {name!r} is no name that Kubernetes takes; begin with a letter, use "
            f"letters, digits and -, and {most} characters at most"
        )


def submitter(job: JobOutline) -> Body:
    """Return the pod that hands a RayJob's command to the head and shows its output."""
    container = _container(job.kubernetes, "ray-job-submitter", _token(job.kubernetes), [])
    container["resources"] = _resources({"cpu": "1", "memory": "1Gi"})
    del container["volumeMounts"], container["ports"]
    pod = _pod(job, container, job.kubernetes.head)
    del pod["volumes"]
    return {"metadata": {"labels": job_labels(job)}, "spec": pod}


def job_labels(job: JobOutline) -> dict[str, str]:
    """Return the labels of all that belongs to a job."""
    return {"app.kubernetes.io/name": "disagg-train", "app.kubernetes.io/instance": name_of(job)}


def name_of(job: JobOutline) -> str:
    """Return the job's name as Kubernetes can have it."""
    return "".join(each if each.isalnum() else "-" for each in job.name.lower())


def _worker_group(job: JobOutline, name: str) -> Body:
    about, own = job.kubernetes, job.kubernetes.groups.get(name, GroupPodsConfig())
    share = _share(job, name, own)
    capabilities = ["IPC_LOCK"] if about.rdma else []
    container = _container(about, "ray-worker", _variables(job), capabilities)
    container["resources"] = _resources(_worker_resources(about, own, share))
    container["lifecycle"] = {"preStop": {"sleep": {"seconds": grace_s(job) - _ENDING_S}}}
    labels = _node_labels(job, name, own)
    return {
        "groupName": pod_name(name),
        "replicas": share.pods,
        "minReplicas": share.pods,
        "maxReplicas": share.pods,
        "labels": labels,
        "rayStartParams": {"num-cpus": str(share.ranks)},
        "template": {
            "metadata": {"labels": job_labels(job)},
            "spec": _pod(job, container, own),
        },
    }


def _node_labels(job: JobOutline, name: str, own: GroupPodsConfig) -> dict[str, str]:
    """Return the labels of a group's Ray nodes: those that the trainer asks for are among them.

    Raises:
        ConfigError: two parts of the job file give a label two values.
    """
    asked = {k: v for k, v in job.groups[name].labels.items() if not k.startswith(OF_RAY)}
    made_for = {GROUP_LABEL: pod_name(name)}
    labels: dict[str, str] = {}
    for part in (made_for, asked, own.labels):
        for key, value in part.items():
            if labels.setdefault(key, value) != value:
                raise ConfigError(
                    f"groups.{name}: the label {key} of its nodes would be {labels[key]!r} and "
                    f"{value!r}; set it in groups.{name}.labels only, and to one value"
                )
    return labels


def _share(job: JobOutline, name: str, own: GroupPodsConfig) -> PodShare:
    group, about, tp = job.groups[name], job.kubernetes, tp_ranks(job.modules, name)
    if uses_gpus(job):
        gpus_per_node = own.gpus_per_node or about.gpus_per_node
        return share_on_gpus(name, group.ranks, group.gpus_per_rank, gpus_per_node, tp)
    ranks_per_node = own.cpu_ranks_per_node or about.cpu_ranks_per_node
    return share_on_cpus(name, group.ranks, ranks_per_node, tp)


def _worker_resources(
    about: KubernetesConfig, own: GroupPodsConfig, share: PodShare
) -> dict[str, str]:
    cpus = (own.cpus_per_rank or about.cpus_per_rank) * share.ranks
    memory = times(own.memory_per_rank or about.memory_per_rank, share.ranks)
    found = {"cpu": str(cpus), "memory": memory}
    if share.gpus:
        found[GPU] = str(share.gpus)
    if about.rdma:
        found[about.rdma.resource] = str(about.rdma.per_pod)
    return found


def _resources(amounts: Mapping[str, str]) -> Body:
    """Return what a container is given: as much as it asks for, so that it is evicted last."""
    return {"limits": dict(amounts), "requests": dict(amounts)}


def _token(about: KubernetesConfig) -> dict[str, str | Body]:
    token = {"secretKeyRef": {"name": about.auth_secret, "key": "auth_token"}}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": {"valueFrom": token}}


def _variables(job: JobOutline) -> dict[str, str | Body]:
    about = job.kubernetes
    found: dict[str, str | Body] = {"RAY_worker_niceness": "0", "GLOO_SOCKET_IFNAME": "eth0"}
    if uses_gpus(job):
        found |= {"NCCL_SOCKET_IFNAME": "eth0", "NCCL_DEBUG": "WARN"}
        found["NCCL_IB_DISABLE"] = "0" if about.rdma else "1"
    secrets = {
        name: {"valueFrom": {"secretKeyRef": {"name": entry.secret, "key": entry.key}}}
        for name, entry in about.env_from_secrets.items()
    }
    return found | about.env | secrets | _token(about)


def _container(
    about: KubernetesConfig,
    name: str,
    variables: Mapping[str, str | Body],
    capabilities: Sequence[str],
) -> Body:
    added = {"add": list(capabilities)} if capabilities else {}
    data = [
        {"name": f"data-{number}", "mountPath": claim.mount_path, "readOnly": True}
        for number, claim in enumerate(about.data)
    ]
    return {
        "name": name,
        "image": about.image,
        "ports": [dict(_METRICS)],
        "env": [
            {"name": n, "value": value} if isinstance(value, str) else {"name": n, **value}
            for n, value in variables.items()
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"], **added},
        },
        "volumeMounts": [
            {"name": "checkpoints", "mountPath": about.checkpoints.mount_path},
            *data,
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }


def _pod(job: JobOutline, container: Body, placement: PodPlacement) -> Body:
    about = job.kubernetes
    pod: Body = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace_s(job),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": _volumes(about),
    }
    if about.service_account:
        pod["serviceAccountName"] = about.service_account
    if about.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in about.image_pull_secrets]
    if placement.node_selector:
        pod["nodeSelector"] = dict(placement.node_selector)
    if placement.tolerations:
        pod["tolerations"] = [_toleration(each) for each in placement.tolerations]
    return pod


def _volumes(about: KubernetesConfig) -> list[Body]:
    shm = {"medium": "Memory"} | ({"sizeLimit": about.shm} if about.shm else {})
    checkpoints = {"claimName": about.checkpoints.claim}
    data = [
        {
            "name": f"data-{number}",
            "persistentVolumeClaim": {"claimName": claim.claim, "readOnly": True},
        }
        for number, claim in enumerate(about.data)
    ]
    return [
        {"name": "checkpoints", "persistentVolumeClaim": checkpoints},
        *data,
        {"name": "shm", "emptyDir": shm},
    ]


def _toleration(toleration: TolerationConfig) -> Body:
    found: Body = {"key": toleration.key, "operator": "Exists"}
    if toleration.value is not None:
        found |= {"operator": "Equal", "value": toleration.value}
    if toleration.effect is not None:
        found["effect"] = toleration.effect
    return found
