"""The Kubernetes objects of a job: its file and scripts, and the RayJob or RayCluster."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import PurePosixPath
from typing import Any, Literal

from disagg_train.config.outline import JobOutline
from disagg_train.config.secret_values import field_of_issued_secret
from disagg_train.errors import ConfigError
from disagg_train.kube.pods import (
    Body,
    check_dns_label,
    head_group,
    job_labels,
    name_of,
    submitter,
    worker_groups,
)
from disagg_train.kube.queues import check_queue, queue_labels
from disagg_train.kube.scripts import FOLDER, RUN, STOP

Kind = Literal["rayjob", "raycluster"]

_LONGEST_NAMES: Mapping[Kind, int] = {"rayjob": 47, "raycluster": 53}
"""The operator derives the names of services from these, which may have 63 characters."""
_OLDEST_RAY = (2, 52, 0)
_KEPT_S = 60
"""How long pods outlive a job that is over, for their logs to be read."""

COMMAND = f"sh {FOLDER}/run.sh disagg-train train {FOLDER}/job.yaml --address auto --resume auto"
"""What the driver is started with, on the head and by Ray."""


def manifest(job: JobOutline, kind: Kind, job_file: str) -> list[Body]:
    """Return the objects that run a job on Kubernetes, in the order to make them in.

    Args:
        job: the job.
        kind: `rayjob`: a Ray cluster that begins the job and ends with it; `raycluster`: one
            that stays, for jobs handed to it.
        job_file: text of the job file that the driver reads.

    Raises:
        ConfigError: the job cannot run there; naming the field and the way out.
    """
    about, name = job.kubernetes, name_of(job)
    check_dns_label(name, "name", _LONGEST_NAMES[kind])
    check_queue(about.queue, len(job.groups), kind == "rayjob")
    _check_ray(about.ray_version)
    _check_kept(job)
    labels = job_labels(job)
    place = {"namespace": about.namespace} if about.namespace else {}
    config_map = f"{name}-job"
    cluster = _cluster(job, config_map)
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": config_map, **place, "labels": labels},
            "data": {"job.yaml": job_file, "run.sh": RUN, "stop.sh": STOP},
        },
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob" if kind == "rayjob" else "RayCluster",
            "metadata": {"name": name, **place, "labels": labels | queue_labels(about.queue)},
            "spec": _ray_job(job, cluster) if kind == "rayjob" else cluster,
        },
    ]


def driver_content(job: JobOutline, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the driver's job file says, where every attempt has its share of restarts.

    A new Ray cluster is a restart as well. With `retries` of them, no more than
    `recovery.max_restarts` happen in all.

    Args:
        job: the job.
        content: of its file.

    Raises:
        ConfigError: there are more retries than restarts, or a value is a secret.
    """
    _check_no_secret(content)
    found = deepcopy(dict(content))
    retries, most = job.kubernetes.retries, job.recovery.max_restarts
    if not retries or job.recovery.restart == "never":
        return found
    if retries > most:
        raise ConfigError(
            f"kubernetes.retries={retries} is more than recovery.max_restarts={most}, which "
            f"counts new Ray clusters too; set retries: {most} or raise max_restarts"
        )
    shared = (most - retries) // (retries + 1)
    found["recovery"] = {**found.get("recovery", {}), "max_restarts": shared}
    return found


def _ray_job(job: JobOutline, cluster: Body) -> Body:
    about = job.kubernetes
    deadlines = {
        "activeDeadlineSeconds": about.deadline_s,
        "preRunningDeadlineSeconds": about.start_deadline_s,
    }
    return {
        "entrypoint": COMMAND,
        "submissionMode": "K8sJobMode",
        "backoffLimit": about.retries,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": _KEPT_S,
        **{field: seconds for field, seconds in deadlines.items() if seconds is not None},
        "submitterPodTemplate": submitter(job),
        "rayClusterSpec": cluster,
    }


def _cluster(job: JobOutline, config_map: str) -> Body:
    about = job.kubernetes
    return {
        "rayVersion": about.ray_version,
        "authOptions": {"mode": "token", "secretName": about.auth_secret},
        "headGroupSpec": head_group(job, config_map),
        "workerGroupSpecs": worker_groups(job),
    }


def _check_ray(version: str) -> None:
    if tuple(map(int, version.split("."))) < _OLDEST_RAY:
        oldest = ".".join(map(str, _OLDEST_RAY))
        raise ConfigError(
            f"kubernetes.ray_version is {version}, which has no token authentication; use an "
            f"image with {oldest} or newer"
        )


def _check_kept(job: JobOutline) -> None:
    """Refuse folders that end with the pod that wrote them, and volumes on top of each other."""
    about = job.kubernetes
    mount = PurePosixPath(about.checkpoints.mount_path)
    folders = {"output": job.output, "checkpoint.folder": job.checkpoint.folder or job.output}
    for field, folder in folders.items():
        if "://" not in folder and mount not in (path := PurePosixPath(folder), *path.parents):
            raise ConfigError(
                f"{field} is {folder!r}, which is lost with the pod; put it on the volume of "
                f"kubernetes.checkpoints, as {mount / path.name}"
            )
    mounts = [about.checkpoints.mount_path, *(claim.mount_path for claim in about.data)]
    mounts += ["/dev/shm", FOLDER]
    if twice := sorted({path for path in mounts if mounts.count(path) > 1}):
        raise ConfigError(f"kubernetes: two volumes are mounted at {twice[0]!r}; use another path")


def _check_no_secret(content: Mapping[str, Any]) -> None:
    """Refuse a job file with a token in it: a ConfigMap is read by more people than a Secret."""
    if (field := field_of_issued_secret(content)) is not None:
        raise ConfigError(
            f"{field} holds a token or a password, which must not stand in a job file; make a "
            f"Kubernetes Secret of it and name that in kubernetes.env_from_secrets"
        )
