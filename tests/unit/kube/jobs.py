"""Jobs for Kubernetes, in every combination that a manifest may differ by."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest

from disagg_train.config.load import read_content
from disagg_train.config.outline import JobOutline, outline_of
from disagg_train.errors import ConfigError
from disagg_train.kube.manifest import Kind, driver_content, manifest
from tests.unit.config.jobs import JOB as PLAIN

JOB: Mapping[str, Any] = {
    **PLAIN,
    "device": "cuda",
    "output": "/checkpoints/digits",
    "kubernetes": {
        "image": "registry.example/image:1",
        "checkpoints": {"claim": "checkpoints", "mount_path": "/checkpoints"},
    },
}

_COLOCATED = ("groups={everything: {ranks: 4}}", "modules.language.group=everything") + (
    "modules.vision.group=everything",
    "modules.vision.parallel={dp: 4}",
)
_RDMA = (
    "kubernetes.rdma.resource=rdma/devices",
    "kubernetes.shm=16Gi",
    "kubernetes.data=[{claim: data, mount_path: /data}]",
    "kubernetes.service_account=trainer",
    "kubernetes.image_pull_secrets=[pull]",
    "kubernetes.env={NCCL_IB_HCA: mlx5}",
    "kubernetes.env_from_secrets.HF_TOKEN={secret: hub, key: token}",
    "kubernetes.head.tolerations=[{key: spot, value: 'yes', effect: NoSchedule}]",
    "kubernetes.head.node_selector={disk: fast}",
    "kubernetes.deadline_s=86400",
    "kubernetes.start_deadline_s=3600",
)


@dataclass(frozen=True)
class Case:
    """A combination, as overrides of the job, and the kind of manifest."""

    name: str
    overrides: tuple[str, ...]
    kind: Kind

    def objects(self) -> list[dict[str, Any]]:
        return objects(*self.overrides, kind=self.kind)

    def ray(self) -> dict[str, Any]:
        return self.objects()[1]


def outline(*overrides: str, job: Mapping[str, Any] = JOB) -> JobOutline:
    return outline_of(read_content(job, overrides))


def objects(*overrides: str, kind: Kind = "rayjob") -> list[dict[str, Any]]:
    """Return the objects of the job after the overrides; its file as if it were printed."""
    job = outline(*overrides)
    return manifest(job, kind, str(driver_content(job, read_content(JOB, overrides))))


def cluster_of(ray: Mapping[str, Any]) -> dict[str, Any]:
    return ray["spec"]["rayClusterSpec"] if ray["kind"] == "RayJob" else ray["spec"]


def refusal(*overrides: str, kind: Kind = "rayjob") -> str:
    """Return the message with which the job is refused after the overrides."""
    with pytest.raises(ConfigError) as caught:
        objects(*overrides, kind=kind)
    return str(caught.value)


def cases() -> Iterator[Case]:
    """Yield all combinations."""
    parts: list[dict[str, tuple[str, ...]]] = [
        {"disjoint": (), "colocated": _COLOCATED},
        {"gpu": (), "cpu": ("device=cpu",)},
        {"tcp": (), "rdma": _RDMA},
        {"vaults": ("kubernetes.retries=2",), "no-recovery": ("recovery.restart=never",)},
        {"unqueued": ()}
        | {
            queue: (f"kubernetes.queue={{kind: {queue}, name: team-a}}",)
            for queue in ("kueue", "volcano", "kai")
        },
    ]
    kinds: tuple[Kind, ...] = ("rayjob", "raycluster")
    for kind in kinds:
        for names in product(*parts):
            overrides = [
                each for name, part in zip(names, parts, strict=True) for each in part[name]
            ]
            yield Case("-".join([kind, *names]), tuple(overrides), kind)


every_case = pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name)
