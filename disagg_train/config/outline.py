"""A job without its modules' sizes: what can be said of it where its checkpoints are not.

``pretrained`` and the paths of data may be those of another machine, so nothing is opened.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from disagg_train.config.groups import GroupConfig
from disagg_train.config.job import JobConfig
from disagg_train.config.kubernetes import KubernetesConfig
from disagg_train.config.load import refusal
from disagg_train.config.modules import ParallelConfig
from disagg_train.config.survival import CheckpointConfig, RecoveryConfig
from disagg_train.errors import ConfigError

_FROM_CHECKPOINT = ("missing", "unknown_kind")


class ModuleOutline(BaseModel):
    """The fields of a module that say how its ranks are placed; of the same names as its own."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    group: str
    parallel: ParallelConfig = ParallelConfig()


class JobOutline(BaseModel):
    """The fields of a job that say what it needs of a cluster; of the same names as the job's."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    groups: dict[str, GroupConfig]
    modules: dict[str, ModuleOutline]
    output: str = "runs/default"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint: CheckpointConfig = CheckpointConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    kubernetes: KubernetesConfig


def outline_of(content: Mapping[str, Any]) -> JobOutline:
    """Return the outline of a job that is to run on Kubernetes.

    All rules of a job hold, but for the sizes that ``pretrained`` checkpoints decide, and the
    rules that these have a part in.

    Args:
        content: of the job file.

    Raises:
        ConfigError: a field breaks a rule, or the job has no `kubernetes`.
    """
    if content.get("kubernetes") is None:
        raise ConfigError(
            "kubernetes: the job file has no such section; add one with at least "
            "kubernetes: {image: IMAGE, checkpoints: {claim: CLAIM, mount_path: /checkpoints}}"
        )
    check_content(content)
    try:
        return JobOutline.model_validate(content)
    except ValidationError as error:  # in a module whose kind its checkpoint decides
        raise refusal(map(_with_kind, error.errors())) from None


def _with_kind(error: Any) -> dict[str, Any]:
    """Return an error of an outline with the place that it has in a job: modules are of kinds."""
    first, *rest = error["loc"]
    in_module = [*rest[:1], "kind", *rest[1:]] if first == "modules" else rest
    return {**error, "loc": (first, *in_module)}


def check_content(content: Mapping[str, Any]) -> None:
    """Check a job that is to run on another machine, as far as it can be without opening files.

    Args:
        content: of the job file.

    Raises:
        ConfigError: a field breaks a rule.
    """
    try:
        JobConfig.model_validate(content)
    except ValidationError as error:
        errors = [each for each in error.errors() if not _is_filled_in(content, each["loc"], each)]
        if errors:
            raise refusal(errors) from None


def _is_filled_in(
    content: Mapping[str, Any], location: tuple[int | str, ...], error: Mapping[str, Any]
) -> bool:
    """Whether a field is missing that a checkpoint fills in: a module's kind or its sizes."""
    if len(location) < 2 or location[0] != "modules" or error["type"] not in _FROM_CHECKPOINT:
        return False
    module = content["modules"][location[1]]
    if not isinstance(module, Mapping) or not isinstance(module.get("pretrained"), str):
        return False
    return location[3:4] == ("model",) or (len(location) == 2 and "kind" not in module)
