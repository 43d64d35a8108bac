"""A job whose group has more or fewer ranks: its modules' data parallelism follows, no other."""

from pydantic import ValidationError

from disagg_train.config.job import JobConfig
from disagg_train.errors import ConfigError


def resized(job: JobConfig, group: str, ranks: int) -> JobConfig:
    """Return the job with another number of ranks in a group.

    The global batch and its microbatches stay, so the training does too. What was planned for the
    old layout goes.

    Raises:
        ConfigError: there is no such group, or its modules' other degrees do not divide the ranks.
    """
    if group not in job.groups:
        raise ConfigError(f"the job has no group {group!r}; its groups are {sorted(job.groups)}")
    modules = dict(job.modules)
    for name, module in job.modules.items():
        if module.group == group:
            dp, rest = divmod(ranks, module.parallel.num_ranks // module.parallel.dp)
            if rest or not dp:
                unit = module.parallel.num_ranks // module.parallel.dp
                raise ConfigError(
                    f"group {group!r} cannot have {ranks} ranks: modules.{name} has "
                    f"tp*cp*pp={unit}; use a multiple of {unit}"
                )
            parallel = module.parallel.model_copy(update={"dp": dp})
            modules[name] = module.model_copy(update={"parallel": parallel})
    groups = job.groups | {group: job.groups[group].model_copy(update={"ranks": ranks})}
    changed = job.model_copy(update={"groups": groups, "modules": modules, "plan": None})
    try:
        return JobConfig.model_validate(changed.model_dump())
    except ValidationError as error:
        reasons = "; ".join(str(each["msg"]) for each in error.errors())
        raise ConfigError(f"group {group!r} cannot have {ranks} ranks: {reasons}") from None


def shrunk(job: JobConfig, group: str, most_ranks: int) -> JobConfig | None:
    """Return the job with as many ranks in a group as it can have; None where it can have none.

    Args:
        job: the job.
        group: that has lost ranks.
        most_ranks: how many there is room for.
    """
    for ranks in range(most_ranks, 0, -1):
        try:
            return resized(job, group, ranks)
        except ConfigError:
            continue
    return None
