"""Environment variables that a job's ranks start with."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from disagg_train.config.secret_values import looks_secret
from disagg_train.errors import ConfigError

_NAME = re.compile(r"[A-Za-z_]\w*")
_SET_HERE = (
    "CUDA_VISIBLE_DEVICES",
    "DISAGG_TRAIN_FORCE_CPU",
    "NCCL_LAUNCH_ORDER_IMPLICIT",
    "NCCL_MULTI_RANK_GPU_ENABLE",
)


def _as_text(value: Any) -> Any:
    """Take whole numbers too, which YAML makes of ``NCCL_IB_GID_INDEX: 3``."""
    if not isinstance(value, dict):
        return value
    return {name: str(each) if type(each) is int else each for name, each in value.items()}


def _checked(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is no name of an environment variable")
        if name in _SET_HERE:
            raise ConfigError(f"{name} is set for every rank by Ray or by this trainer; remove it")
        if name.startswith("RAY_"):
            raise ConfigError(
                f"{name}: Ray reads its own variables when a node starts; set it there"
            )
        if looks_secret(name, text):
            raise ConfigError(
                f"{name} looks like a secret, which must not stand in a file; set it in the "
                f"environment that the Ray nodes are started with (on Kubernetes: "
                f"kubernetes.env_from_secrets), which all ranks inherit"
            )
    return value


Environment = Annotated[dict[str, str], BeforeValidator(_as_text), AfterValidator(_checked)]
"""Names and values; whole numbers are taken as text, secrets are refused."""
