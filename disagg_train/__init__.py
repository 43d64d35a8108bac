"""Train multimodal LLMs with every module on its own parallel layout and its own place."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from disagg_train.attached import attach
    from disagg_train.config.job import JobConfig
    from disagg_train.run_view import read_run
    from disagg_train.trainer import Trainer

__all__ = ["JobConfig", "Trainer", "attach", "read_run"]
_HOMES = {
    "JobConfig": "disagg_train.config.job",
    "Trainer": "disagg_train.trainer",
    "attach": "disagg_train.attached",
    "read_run": "disagg_train.run_view",
}


def __getattr__(name: str) -> object:
    """Import public names on first use, so that importing the package loads no torch, no Ray."""
    if name not in _HOMES:
        raise AttributeError(f"module 'disagg_train' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
