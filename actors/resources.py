"""What ranks take of a cluster, and how many of them fit. Knows no Ray."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, floor

from actors.nodes import ROUNDING
from disagg_train.config.job import JobConfig
from disagg_train.errors import ConfigError

_DIGITS = 4
"""Of a GPU's parts, as Ray counts them."""

_KIND = "accelerator_type:"
"""Begin of the name of a resource that nodes with GPUs of one kind have, as Ray counts it."""
_PART_OF_KIND = 0.001
"""What Ray's own ``accelerator_type`` option asks of it: enough for a thousand ranks per node."""


@dataclass(frozen=True)
class Resources:
    """What one rank takes of the cluster, and what its process is told.

    Args:
        gpus: part of a GPU; 0 on CPUs.
        cpus: CPUs.
        environment: variables set before torch and NCCL load.
        accelerator: kind of GPU that it must be, by Ray's name; any where None.
    """

    gpus: float
    cpus: float
    environment: tuple[tuple[str, str], ...] = ()
    accelerator: str | None = None

    def bundle(self, ranks: int = 1) -> dict[str, float]:
        """Return the resources as a placement group's bundle.

        Args:
            ranks: that it holds. Where they need more than one GPU, it has whole ones, since a
                rank's part of a GPU is of one.
        """
        cpus = self.cpus * ranks
        if not self.gpus:
            return {"CPU": cpus}
        gpus = round(self.gpus * ranks, _DIGITS)
        if gpus > 1:
            gpus = float(ceil(ranks / floor(1 / self.gpus + ROUNDING)))
        kind = {f"{_KIND}{self.accelerator}": _PART_OF_KIND} if self.accelerator else {}
        return {"GPU": gpus, "CPU": cpus} | kind


ByGroup = Mapping[str, Resources]


def is_counted(resource: str) -> bool:
    """Whether ranks may ask for a resource of Ray's: CPUs, GPUs and kinds of these."""
    return resource in ("CPU", "GPU") or resource.startswith(_KIND)


def accelerators(total: Mapping[str, float]) -> list[str]:
    """Return the kinds of GPUs that a cluster has, by Ray's names."""
    return sorted(name.removeprefix(_KIND) for name in total if name.startswith(_KIND))


def rank_resources(job: JobConfig, total: Mapping[str, float]) -> tuple[ByGroup, str]:
    """Return what a rank of each group takes, and a note where `auto` passes over GPUs.

    Args:
        job: the job.
        total: the cluster's resources, as Ray counts them.

    Raises:
        ConfigError: the job asks for GPUs, or a kind of them, and the cluster has none.
    """
    num_gpus = total.get("GPU", 0.0)
    if job.device == "cuda" and not num_gpus:
        raise ConfigError("device: cuda, but the cluster has no GPU; set device: cpu or auto")
    if job.device == "cpu" or not num_gpus:
        return _on_cpus(job, num_gpus), ""
    reason = _reason_for_cpus(job, num_gpus) if job.device == "auto" else ""
    if reason:
        note = f"{reason}, so all ranks run on CPUs; set device: cuda to insist on GPUs"
        return _on_cpus(job, num_gpus), note
    _check_kinds(job, total)
    told = _gpu_environment(job)
    found = {
        name: Resources(group.gpus_per_rank, 1.0, _environment(job, name, told), group.accelerator)
        for name, group in job.groups.items()
    }
    return found, ""


def _check_kinds(job: JobConfig, total: Mapping[str, float]) -> None:
    """Refuse a kind of GPU that no node has: Ray would wait for one that may yet come."""
    kinds = accelerators(total)
    for name, group in job.groups.items():
        if group.accelerator is not None and group.accelerator not in kinds:
            raise ConfigError(
                f"groups.{name}.accelerator is {group.accelerator!r}, but the cluster's GPUs are "
                f"of the kinds {kinds}; name one of these, or remove accelerator"
            )


def _reason_for_cpus(job: JobConfig, num_gpus: float) -> str:
    needed = sum(group.ranks * group.gpus_per_rank for group in job.groups.values())
    if needed > num_gpus + ROUNDING and job.fallback is None:
        return f"the groups need {needed:g} GPUs and the cluster has {num_gpus:g}"
    if job.num_ranks > 1 and importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed, which connects ranks on GPUs"
    return ""


def _on_cpus(job: JobConfig, num_gpus: float) -> ByGroup:
    """Keep the ranks off GPUs that the cluster has but the job does not use."""
    told = {"DISAGG_TRAIN_FORCE_CPU": "1"} if num_gpus else {}
    return {name: Resources(0.0, 1.0, _environment(job, name, told)) for name in job.groups}


def _gpu_environment(job: JobConfig) -> dict[str, str]:
    """Return what NCCL must be told: all members of a communicator, or none."""
    variables = {"NCCL_LAUNCH_ORDER_IMPLICIT": "1"}
    if any(group.gpus_per_rank < 1 for group in job.groups.values()):
        variables["NCCL_MULTI_RANK_GPU_ENABLE"] = "1"
    return variables


def _environment(
    job: JobConfig, group: str, told: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    """Return what a rank's process starts with: what the job file says, and what we tell it."""
    return tuple((job.environment | job.groups[group].environment | dict(told)).items())


def capacity(job: JobConfig, resources: ByGroup, total: Mapping[str, float]) -> int:
    """Return how many of the job's ranks the cluster has room for once nothing else runs there.

    All of them where the groups fit side by side, else as many as the LLM's group could have
    alone, but at least one less than the job asks for. Of which kind GPUs are is not counted: where
    too few are of one that a group asks for, its placement fails and says so.
    """
    cpus = sum(group.ranks * resources[name].cpus for name, group in job.groups.items())
    gpus = sum(group.ranks * resources[name].gpus for name, group in job.groups.items())
    room_cpus, room_gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    if cpus <= room_cpus + ROUNDING and gpus <= room_gpus + ROUNDING:
        return job.num_ranks
    one = resources[job.language.group]
    alone = floor(room_cpus / one.cpus + ROUNDING)
    if one.gpus:
        alone = min(alone, floor(room_gpus) * floor(1 / one.gpus + ROUNDING))
    return min(alone, job.num_ranks - 1)
