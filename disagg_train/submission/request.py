"""What Ray's job server is asked to run: the command, its environment, what to remember of it."""

import math
import re
import secrets
import shlex
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from disagg_train.config.secret_values import looks_secret
from disagg_train.errors import ConfigError
from disagg_train.submission.job_file import JOB_FILE, JobToSend, is_same_on_all_nodes

MARK, NAME, STEPS, OUTPUT, GRACE = "disagg_train", "job", "steps", "output", "grace_s"
"""Keys of what Ray remembers of our jobs; the first one marks them as ours."""

STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""Seconds from Ray's SIGTERM to its SIGKILL, read from the job's own environment; 3 by default."""
CLOSING_S = 30.0
"""A run's end, once its state is saved or the grace is over: ranks are told to leave, or killed."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
_VARIABLE = re.compile(r"[A-Za-z_]\w*")
_OURS = (STOP_WAIT, "RAY_AUTH_MODE", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


@dataclass(frozen=True)
class JobRequest:
    """A job as Ray is asked to run it.

    Args:
        job_id: its submission id.
        entrypoint: shell command of the driver, in the folder that is uploaded.
        environment: of the driver and of all ranks.
        metadata: what Ray remembers of it, for people.
    """

    job_id: str
    entrypoint: str
    environment: Mapping[str, str]
    metadata: Mapping[str, str]


def request_of(
    job: JobToSend, job_id: str, resume: str | None, environment: Mapping[str, str]
) -> JobRequest:
    """Return what to ask of Ray.

    Ray's SIGTERM makes the driver end its step and save, so Ray is told to wait that long.

    Args:
        job: the job.
        job_id: submission id.
        resume: as ``train`` takes it; None begins anew and removes earlier checkpoints.
        environment: variables of the user's.

    Raises:
        ConfigError: a folder to resume from is relative, and so of this machine.
    """
    if resume and resume != "auto" and not is_same_on_all_nodes(resume):
        raise ConfigError(f"--resume {resume}: name the folder by a path that all nodes see")
    begin = ["--overwrite"] if resume is None else ["--resume", resume]
    command = ["python", "-m", "disagg_train.cli", "train", JOB_FILE, "--address", "auto", *begin]
    wait_s = math.ceil(job.recovery.grace_s + CLOSING_S)
    return JobRequest(
        job_id,
        shlex.join(command),
        {**environment, STOP_WAIT: str(wait_s)},
        {
            MARK: _version(),
            NAME: job.name,
            STEPS: str(job.train.steps),
            OUTPUT: job.output,
            GRACE: f"{job.recovery.grace_s:g}",
        },
    )


def job_id_of(name: str, given: str | None) -> str:
    """Return the submission id that was asked for, or a new one that says the job's name.

    Raises:
        ConfigError: it is no id.
    """
    if given is None:
        slug = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "job"
        return f"{slug[:60]}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    if not _ID.fullmatch(given):
        raise ConfigError(
            f"--submission-id {given!r} is no id; use letters, digits, -, _ and ., 100 at most"
        )
    return given


def variables(names: Iterable[str], shell: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of this shell that a job is to have.

    Args:
        names: of ``--env``.
        shell: environment of this process.

    Raises:
        ConfigError: one is missing, or not the job's to have; no value is told.
    """
    return {name: _variable(name, shell) for name in names}


def _variable(name: str, shell: Mapping[str, str]) -> str:
    if "=" in name:
        name = name.partition("=")[0]
        raise ConfigError(
            f"--env takes a name, and the value from this shell: export {name} and write "
            f"--env {name}"
        )
    if not _VARIABLE.fullmatch(name):
        raise ConfigError(f"--env {name!r} is no name of an environment variable")
    if name in _OURS:
        raise ConfigError(f"--env {name}: the cluster sets it; leave it out")
    if name not in shell:
        raise ConfigError(f"--env {name}: this shell has no such variable; export it first")
    value = shell[name]
    if looks_secret(name, value):
        raise ConfigError(
            f"--env {name} looks like a secret, and Ray shows a job's variables to everybody who "
            f"may list jobs. Put it into the environment that Ray's nodes are started in (on "
            f"Kubernetes: kubernetes.env_from_secrets), or in a file that only they can read"
        )
    return value


def _version() -> str:
    try:
        return version("disagg_train")
    except PackageNotFoundError:
        return "unknown"
