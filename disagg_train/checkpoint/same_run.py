"""What of a job must stay the same for a run to be resumed; layouts and placement may change."""

from collections.abc import Mapping
from typing import Any

from disagg_train.config.job import JobConfig
from disagg_train.errors import ConfigError

_OF_THE_JOB = ("seed",)
_OF_TRAINING = ("global_batch", "tokens_per_microbatch")
_OF_MODULES = ("kind", "model", "projector", "lora", "freeze")


def check_same_run(saved: Mapping[str, Any], job: JobConfig) -> None:
    """Compare a checkpoint's job with the one that is to resume it.

    The order of samples depends on seed and batch, the state on models and what is trained.

    Raises:
        ConfigError: naming what differs.
    """
    new = job.model_dump(mode="json")
    differing = [name for name in _OF_THE_JOB if saved[name] != new[name]]
    differing += [f"train.{n}" for n in _OF_TRAINING if saved["train"][n] != new["train"][n]]
    old_modules, new_modules = saved["modules"], new["modules"]
    differing += [f"modules.{name}" for name in sorted(old_modules.keys() ^ new_modules.keys())]
    for name in sorted(old_modules.keys() & new_modules.keys()):
        old, now = old_modules[name], new_modules[name]
        differing += [f"modules.{name}.{f}" for f in _OF_MODULES if old.get(f) != now.get(f)]
    if differing:
        raise ConfigError(
            f"the checkpoint is of another run: {', '.join(differing)} differ; undo that to "
            f"resume, or begin a new run from its weights with `start_from`"
        )
