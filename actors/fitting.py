"""A job that is larger than the cluster: refused, or changed to fit. Knows no Ray."""

from math import lcm

from disagg_train.config.job import JobConfig
from disagg_train.config.modules import ParallelConfig
from disagg_train.errors import ClusterError


def fit(job: JobConfig, capacity: int) -> tuple[JobConfig, str]:
    """Return the job as it can run on ``capacity`` ranks, and what was changed about it.

    Raises:
        ClusterError: it does not fit, and may not fall back or cannot.
    """
    if job.num_ranks <= capacity:
        return job, ""
    wanted = ", ".join(f"{name}: {group.ranks}" for name, group in job.groups.items())
    missing = (
        f"the groups need {job.num_ranks} ranks ({wanted}) and the cluster has room for {capacity}"
    )
    if job.fallback is None:
        raise ClusterError(
            f"{missing}; {job.num_ranks - capacity} are missing. Add nodes, use smaller groups, "
            f"or allow `fallback: colocated`"
        )
    unit = lcm(*(_least_ranks(module.parallel) for module in job.modules.values()))
    ranks = capacity // unit * unit
    if ranks == 0:
        raise ClusterError(f"{missing}; colocated, the modules still need {unit} ranks")
    return _colocated(job, ranks), (
        f"{missing}, so all modules run colocated on group {job.language.group!r} with "
        f"{ranks} ranks and dp shrunk to fit; the training is the same"
    )


def _least_ranks(parallel: ParallelConfig) -> int:
    """Return the fewest ranks that a module's degrees leave room for, dp apart."""
    lanes = lcm(parallel.cp, parallel.ep)
    return parallel.tp * parallel.pp * lanes


def _colocated(job: JobConfig, ranks: int) -> JobConfig:
    home = job.language.group
    modules = {}
    for name, module in job.modules.items():
        parallel = module.parallel
        dp = ranks // (parallel.tp * parallel.cp * parallel.pp)
        changes = {"group": home, "parallel": parallel.model_copy(update={"dp": dp})}
        modules[name] = module.model_copy(update=changes)
    groups = {home: job.groups[home].model_copy(update={"ranks": ranks})}
    return JobConfig.model_validate(
        job.model_copy(update={"groups": groups, "modules": modules, "plan": None}).model_dump()
    )
