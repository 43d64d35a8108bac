"""A job file that is to be read on a cluster: what is checked, and changed, before it is sent."""

import re
from collections.abc import Collection, Mapping
from copy import deepcopy
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict

from disagg_train.config.job import TrainConfig
from disagg_train.config.outline import check_content
from disagg_train.config.paths import relative_paths
from disagg_train.config.secret_values import check_no_secret
from disagg_train.config.survival import CheckpointConfig, RecoveryConfig
from disagg_train.errors import ConfigError

JOB_FILE, SCHEDULE_FILE = "disagg-train-job.yaml", "disagg-train-schedule.yaml"
"""Where the driver finds them, in the folder that it is started in."""
_BRACES = re.compile(r"\{[^}]*\}")
"""Of names of shards: ``train-{0..9}.tar``."""


class JobToSend(BaseModel):
    """The fields of a job that sending it depends on; of the same names as the job's."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    output: str = "runs/default"
    start_from: str | None = None
    train: TrainConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    recovery: RecoveryConfig = RecoveryConfig()


def job_to_send(content: Mapping[str, Any]) -> JobToSend:
    """Return a job that may be sent: nothing that it names is opened, but for its rules.

    Args:
        content: of the job file.

    Raises:
        ConfigError: a field breaks a rule, holds a secret, or names what only this machine has.
    """
    check_content(content)
    check_no_secret(content)
    job = JobToSend.model_validate(content)
    if "://" in job.output:
        raise ConfigError(f"output is {job.output!r}; only checkpoint.folder may be an address")
    _check_folders(job)
    _check_pretrained(content["modules"])
    return job


def with_schedule(content: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], Path | None]:
    """Return the job as it is sent, and the file of its schedule where that is sent too.

    Args:
        content: of the job file.
        folder: that relative paths begin in.

    Raises:
        ConfigError: a relative path names no file.
    """
    sent, schedule = deepcopy(dict(content)), content["train"].get("schedule", "1f1b")
    path = folder / Path(schedule).expanduser()
    if path.is_file():
        sent["train"]["schedule"] = SCHEDULE_FILE
        return sent, path
    if path.suffix and not PurePosixPath(schedule).is_absolute():
        raise ConfigError(f"train.schedule: there is no file {schedule} in {folder}")
    return sent, None


def own_classes(content: Mapping[str, Any]) -> dict[str, str]:
    """Return the import paths of the user's own classes, by the field that names them."""
    kinds = {f"modules.{name}.kind": each.get("kind") for name, each in content["modules"].items()}
    kinds["data.kind"] = content.get("data", {}).get("kind")
    named = {field: kind for field, kind in kinds.items() if isinstance(kind, str) and ":" in kind}
    return {f: kind for f, kind in named.items() if not kind.startswith("disagg_train.")}


def check_data_is_sent(content: Mapping[str, Any], sent: Collection[str]) -> None:
    """Refuse relative paths of data that the cluster would look for in vain.

    Args:
        content: of the job file.
        sent: files that are uploaded, as paths below the folder that the driver is started in.

    Raises:
        ConfigError: it names a file that is not sent.
    """
    for field, path in relative_paths(content.get("data")):
        if not _is_sent(path, sent):
            raise ConfigError(
                f"{field} is {path!r}, relative to a folder of this machine. Name it by an "
                f"absolute path that all nodes see; what is small may be uploaded with "
                f"--working-dir"
            )


def _is_sent(path: str, sent: Collection[str]) -> bool:
    """Whether a file, a folder with files, or files of a pattern are sent."""
    pattern = _BRACES.sub("*", str(PurePosixPath(path)))
    return any(fnmatchcase(name, pattern) or name.startswith(f"{pattern}/") for name in sent)


def _check_folders(job: JobToSend) -> None:
    """Refuse folders that would come to lie in what Ray unpacks, and removes with the job."""
    folders = {
        "output": job.output,
        "checkpoint.folder": job.checkpoint.folder,
        "start_from": job.start_from,
    }
    for field, folder in folders.items():
        if folder is not None and not is_same_on_all_nodes(folder):
            raise ConfigError(
                f"{field} is {folder!r}: on the cluster a relative path is below a folder that Ray "
                f"removes again. Name one that all nodes see and keep: "
                f"--set {field}=/shared/{PurePosixPath(folder).name}"
            )


def is_same_on_all_nodes(path: str) -> bool:
    """Whether a path is absolute or an address."""
    return path.startswith("/") or "://" in path


def _check_pretrained(modules: Mapping[str, Any]) -> None:
    for name, module in modules.items():
        path = module.get("pretrained")
        given = path if isinstance(path, str) else "/"
        if not given.startswith(("/", "~")) and Path(given).is_dir():
            raise ConfigError(
                f"modules.{name}.pretrained is {path!r}, a folder of this machine; name it by an "
                f"absolute path that all nodes see"
            )
