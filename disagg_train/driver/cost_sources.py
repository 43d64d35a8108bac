"""Where the costs of a plan are from: a profile, or the sizes of the model and a named GPU."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from disagg_train.config.job import JobConfig
from disagg_train.errors import ConfigError
from disagg_train.planner.analytic_costs import costs_by_size
from disagg_train.planner.candidates import Pool
from disagg_train.planner.gpus import gpu, hardware_of
from disagg_train.planner.measurements import DEFAULT_FOLDER
from disagg_train.planner.module_options import CostsOf
from disagg_train.planner.profiles import Profile

USUAL_GPU = "H100"
"""Taken where nobody names another one."""


@dataclass(frozen=True)
class CostSource:
    """Says what modules cost.

    Args:
        costs_of: the modules of a job, in its layout.
        text: where that is from, for people.
        notes: what people should know about the costs of a job.
    """

    costs_of: CostsOf
    text: str
    notes: Callable[[JobConfig], Sequence[str]] = lambda _: ()


def by_size(gpu_kind: str) -> CostSource:
    """Return costs by the sizes of the model.

    Args:
        gpu_kind: of the GPUs of groups that name no other kind.

    Raises:
        ConfigError: nothing is known of the GPU.
    """
    gpu(gpu_kind)
    text = f"by the sizes of the model, on {gpu_kind} where a group names no other GPU"
    return CostSource(lambda job: costs_by_size(job, hardware_of(job, gpu_kind)), text)


def by_profile(folder: Path) -> CostSource:
    """Return measured costs.

    Args:
        folder: of the measurements.

    Raises:
        ConfigError: nothing was measured there.
        DataError: a file is no measurement.
    """
    profile = Profile.read(folder)
    return CostSource(profile.costs, f"measured ({folder})", profile.notes)


def best_known(job: JobConfig) -> CostSource:
    """Return what was measured of all of a job's modules, or else costs by their sizes."""
    try:
        measured = by_profile(DEFAULT_FOLDER)
        measured.costs_of(job)
    except ConfigError:
        return by_size(USUAL_GPU)
    return measured


def pool_of(count: int, gpu_kind: str | None) -> Pool:
    """Return GPUs of a kind; of a kind that nobody names, nothing is known of the memory.

    Raises:
        ConfigError: nothing is known of the GPU.
    """
    if gpu_kind is None:
        return Pool(count)
    machine = gpu(gpu_kind).machine()
    return Pool(count, machine.memory_bytes, machine.ranks_per_node, gpu_kind)


def pools_of(job: JobConfig) -> list[Pool]:
    """Return the ranks that a job asks for, by the kinds that its groups name."""
    counts: dict[str | None, int] = {}
    for group in job.groups.values():
        counts[group.accelerator] = counts.get(group.accelerator, 0) + group.ranks
    return [pool_of(count, kind) for kind, count in counts.items()]


def pools_named(gpus: str, gpu_kind: str | None) -> list[Pool]:
    """Return the GPUs of ``64`` or of ``H100=48,L40S=16``.

    Args:
        gpus: how many, or how many of each kind.
        gpu_kind: of a plain number of them.

    Raises:
        ConfigError: a part is no number of GPUs, or nothing is known of a kind.
    """
    pools = []
    for part in gpus.split(","):
        kind, equals, count = part.rpartition("=")
        if not count.isdigit() or not int(count):
            raise ConfigError(f"gpus={gpus}: {part!r} is no number of GPUs; write 64 or H100=48")
        pools.append(pool_of(int(count), kind if equals else gpu_kind))
    return pools
