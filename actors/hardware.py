"""What the ranks of a job would compute on. Knows no Ray."""

import os
from collections.abc import Mapping

from actors.resources import accelerators, rank_resources
from disagg_train.config.job import JobConfig
from disagg_train.errors import ConfigError
from disagg_train.metrics.hardware import cpu_name


def group_hardware(job: JobConfig, total: Mapping[str, float]) -> dict[str, str]:
    """Return per group the kind of its GPUs, or the CPU's name where ranks run on CPUs.

    CPUs are taken to be like this machine's; as ranks share their cores, their number counts.

    Args:
        job: the job.
        total: the cluster's resources, as Ray counts them.

    Raises:
        ConfigError: the cluster has several kinds of GPUs, and a group does not name one.
    """
    resources, _ = rank_resources(job, total)
    found = {}
    for name, group in job.groups.items():
        if resources[name].gpus:
            found[name] = group.accelerator or _only_kind(name, total)
        else:
            found[name] = f"{cpu_name()}, {os.cpu_count() or 1} cores"
    return found


def gpu_kinds(job: JobConfig, total: Mapping[str, float]) -> dict[str, str]:
    """Return per group the kind of its GPUs; nothing where one of them is not certain.

    Args:
        job: the job, whose ranks are on GPUs.
        total: the cluster's resources, as Ray counts them.
    """
    try:
        return group_hardware(job, total)
    except ConfigError:
        return {}


def _only_kind(group: str, total: Mapping[str, float]) -> str:
    kinds = accelerators(total)
    if len(kinds) != 1:
        raise ConfigError(
            f"the cluster's GPUs are of the kinds {kinds}; say which ones to measure on: "
            f"groups.{group}.accelerator"
        )
    return kinds[0]
