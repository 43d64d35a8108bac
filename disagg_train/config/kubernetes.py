"""The part of the job file that says how the job runs on Kubernetes; training does not read it."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt

from disagg_train.config.base import Config
from disagg_train.config.secret_values import looks_secret
from disagg_train.errors import ConfigError

QueueKind = Literal["kueue", "volcano", "kai"]

_OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL_KEY = re.compile(
    r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?"
)
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?")
_VARIABLE = re.compile(r"[A-Za-z_]\w*")
_MEMORY = re.compile(r"[1-9]\d*(Ki|Mi|Gi|Ti|k|M|G|T)?")
_SET_BY_MANIFEST = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_JOB_STOP_WAIT_TIME_S")
_REFUSED_BY_OPERATOR = (
    "RAY_REDIS_ADDRESS",
    "REDIS_USERNAME",
    "REDIS_PASSWORD",
    "RAY_enable_autoscaler_v2",
)


def _object_name(value: str) -> str:
    if not _OBJECT_NAME.fullmatch(value):
        raise ConfigError(
            f"{value!r} is no name of a Kubernetes object; use lower-case letters, digits, - and ."
        )
    return value


def _memory(value: str) -> str:
    if not _MEMORY.fullmatch(value):
        raise ConfigError(f"{value!r} is no amount of memory; write a whole number as 32Gi or 500M")
    return value


def _absolute(value: str) -> str:
    if not value.startswith("/") or value.rstrip("/") == "" or ".." in value.split("/"):
        raise ConfigError(
            f"{value!r} is no folder to mount a volume at; use a path as /checkpoints"
        )
    return value.rstrip("/")


def _labels(value: dict[str, str]) -> dict[str, str]:
    for key, text in value.items():
        if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(text):
            raise ConfigError(
                f"{key}: {text!r} is no label; keys and values are letters, digits, -, _ and ., "
                f"63 at most, and a key may begin with a domain and /"
            )
    return value


def _ray_labels(value: dict[str, str]) -> dict[str, str]:
    for key in _labels(value):
        if key.startswith("ray.io/"):
            raise ConfigError(f"{key}: Ray sets the labels under ray.io/ itself; use another key")
    return value


def _free_names(names: Mapping[str, object]) -> None:
    """Refuse names that are no variables, or that are not a job's to set."""
    for name in names:
        if not _VARIABLE.fullmatch(name):
            raise ConfigError(f"{name!r} is no name of an environment variable")
        if name in _SET_BY_MANIFEST:
            raise ConfigError(f"{name} is set by the manifest; remove it")
        if name in _REFUSED_BY_OPERATOR:
            raise ConfigError(f"{name}: the KubeRay operator refuses pods that set it; remove it")


def _plain_variables(value: dict[str, str]) -> dict[str, str]:
    _free_names(value)
    for name, text in value.items():
        if looks_secret(name, text):
            raise ConfigError(
                f"{name} looks like a secret, which must not stand in a file; make a Kubernetes "
                f"Secret of it and write env_from_secrets: {{{name}: {{secret: NAME, key: KEY}}}}"
            )
    return value


def _secret_variables(value: "dict[str, SecretKey]") -> "dict[str, SecretKey]":
    _free_names(value)
    return value


ObjectName = Annotated[str, AfterValidator(_object_name)]
Memory = Annotated[str, AfterValidator(_memory)]
MountPath = Annotated[str, AfterValidator(_absolute)]
Labels = Annotated[dict[str, str], AfterValidator(_labels)]
RayLabels = Annotated[dict[str, str], AfterValidator(_ray_labels)]


class SecretKey(Config):
    """One entry of a Kubernetes Secret, by its name; its value is never in the job file."""

    secret: ObjectName
    """Name of the Secret."""
    key: str = Field(pattern=r"^[-._a-zA-Z0-9]+$")
    """Key in the Secret."""


class ClaimConfig(Config):
    """A PersistentVolumeClaim that is there already, and where pods see it."""

    claim: ObjectName
    """Name of the claim. All pods mount it, so its access mode is ReadWriteMany."""
    mount_path: MountPath
    """Folder that pods see it at."""


class DataClaimConfig(ClaimConfig):
    """A claim that pods only read."""

    claim: ObjectName
    """Name of the claim; ReadOnlyMany is enough."""


class TolerationConfig(Config):
    """A taint of nodes that pods put up with."""

    key: str
    """Key of the taint."""
    value: str | None = None
    """Value of the taint; any where not given."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; any where not given."""


class QueueConfig(Config):
    """The queue that the job waits in until the cluster has room for all its pods."""

    kind: QueueKind
    """What keeps the queue: `kueue`, `volcano` or `kai` (KAI Scheduler)."""
    name: ObjectName
    """Name of the queue (of Kueue: the LocalQueue)."""


class RdmaConfig(Config):
    """Network adapters that NCCL may use without the kernel."""

    resource: str = Field(pattern=r"^[a-z0-9][-a-z0-9.]*/[A-Za-z0-9][-\w.]*$")
    """Resource that the device plugin offers, as `rdma/rdma_shared_device_a`."""
    per_pod: PositiveInt = 1
    """How many of it a pod asks for."""


class PodPlacement(Config):
    """Which nodes pods may be on."""

    node_selector: Labels = {}
    """Labels that a node must have."""
    tolerations: tuple[TolerationConfig, ...] = ()
    """Taints that pods put up with."""


class HeadConfig(PodPlacement):
    """The pod of Ray's head, where the driver runs and no rank does."""

    cpus: PositiveInt = 4
    """CPUs."""
    memory: Memory = "16Gi"
    """Memory."""


class GroupPodsConfig(PodPlacement):
    """The pods of one actor group, where they differ from those of the others."""

    gpus_per_node: PositiveInt | None = None
    """In place of `kubernetes.gpus_per_node`."""
    cpu_ranks_per_node: PositiveInt | None = None
    """In place of `kubernetes.cpu_ranks_per_node`."""
    cpus_per_rank: PositiveInt | None = None
    """In place of `kubernetes.cpus_per_rank`."""
    memory_per_rank: Memory | None = None
    """In place of `kubernetes.memory_per_rank`."""
    labels: RayLabels = {}
    """Labels of the group's Ray nodes, and so of its pods."""


class KubernetesConfig(Config):
    """What `disagg-train manifest` must know beside the job itself."""

    image: str = Field(pattern=r"^\S+$")
    """Image of all pods, made from deploy/Dockerfile or with what that installs."""
    image_pull_secrets: tuple[ObjectName, ...] = ()
    """Secrets that the image is pulled with."""
    ray_version: str = Field(default="2.60.0", pattern=r"^\d+\.\d+\.\d+$")
    """Ray in the image; 2.52.0 or newer, for its token authentication."""
    namespace: ObjectName | None = None
    """Namespace of all objects; that of kubectl where not given."""
    service_account: ObjectName | None = None
    """Service account of the pods; the namespace's default where not given."""
    auth_secret: ObjectName = "ray-auth"
    """Secret whose key `auth_token` holds the token that all of Ray's calls must bear."""
    gpus_per_node: PositiveInt = 8
    """Most GPUs that a pod asks for; a smaller group is one pod."""
    cpu_ranks_per_node: PositiveInt = 8
    """Most ranks of a pod, where ranks run on CPUs."""
    cpus_per_rank: PositiveInt = 4
    """CPUs that a pod asks for, per rank."""
    memory_per_rank: Memory = "32Gi"
    """Memory that a pod asks for, per rank. It holds /dev/shm too, and with `recovery.restart:
    group` the vault's copies: up to 48 bytes per trained weight of the rank."""
    shm: Memory | None = None
    """Largest size of /dev/shm, where Ray's object store is; the pod's memory where not given."""
    checkpoints: ClaimConfig
    """Volume of the job's `output` and of its checkpoints."""
    data: tuple[DataClaimConfig, ...] = ()
    """Volumes that pods read data and pretrained weights from."""
    rdma: RdmaConfig | None = None
    """Network adapters of the pods with ranks; NCCL uses TCP where not given."""
    env: Annotated[dict[str, str], AfterValidator(_plain_variables)] = {}
    """Environment variables of all pods. Secrets are refused; they go in `env_from_secrets`."""
    env_from_secrets: Annotated[dict[str, SecretKey], AfterValidator(_secret_variables)] = {}
    """Environment variables of all pods whose values are in Kubernetes Secrets."""
    queue: QueueConfig | None = None
    """Queue that the job waits in; none where not given."""
    head: HeadConfig = HeadConfig()
    """The pod of Ray's head."""
    groups: dict[str, GroupPodsConfig] = {}
    """Per actor group, what its pods have of their own."""
    retries: NonNegativeInt = 0
    """How often KubeRay makes a new Ray cluster when the head is lost or evicted; the run goes on
    from its newest checkpoint. Each counts against `recovery.max_restarts`, and what is left of
    those is shared among the attempts, so that both together stay within the number."""
    deadline_s: PositiveInt | None = None
    """Seconds after which Kubernetes ends the job, whatever it does; never where not given."""
    start_deadline_s: PositiveInt | None = None
    """Seconds after which a job that has not begun is given up; never where not given."""
