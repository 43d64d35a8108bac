"""What a job server knows of a job, and what it can be asked to do."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from disagg_train.process_end import TERMINATED
from disagg_train.submission.request import GRACE, MARK, STEPS, JobRequest

_OVER = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class JobState:
    """A job of Ray's table.

    Args:
        job_id: submission id.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        message: what Ray says of it; where it failed, the end of its log.
        error_type: Ray's word for what failed, if something did.
        exit_code: of the driver, once it ended by itself.
        start_s: when it began, in seconds since 1970.
        end_s: when it ended.
        metadata: what was remembered of it.
        variables: names of its environment variables.
    """

    job_id: str
    status: str
    message: str = ""
    error_type: str = ""
    exit_code: int | None = None
    start_s: float | None = None
    end_s: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    variables: Sequence[str] = ()

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.status in _OVER

    @property
    def is_ours(self) -> bool:
        """Whether ``disagg-train submit`` sent it."""
        return MARK in self.metadata

    @property
    def steps(self) -> int | None:
        """Steps that it is to train, where known."""
        return int(self.metadata[STEPS]) if STEPS in self.metadata else None

    @property
    def grace_s(self) -> float:
        """How long it may take to end its step and to save."""
        return float(self.metadata.get(GRACE, 0.0))

    @property
    def exit_status(self) -> int:
        """The driver's exit status as a shell gives it; of a stopped one, that of SIGTERM."""
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return TERMINATED
        if self.exit_code is None:
            return 1
        return self.exit_code if self.exit_code >= 0 else 128 - self.exit_code


class JobServer(Protocol):
    """A cluster's job server."""

    address: str
    """Of the dashboard."""

    def submit(self, request: JobRequest, archive: str) -> None:
        """Upload an archive and start a job in it."""

    def job(self, job_id: str) -> JobState:
        """Return what is known of a job."""

    def jobs(self) -> list[JobState]:
        """Return all submitted jobs."""

    def stop(self, job_id: str) -> bool:
        """Have a job's driver told to end; returns before it does, False where it has none yet."""

    def log(self, job_id: str) -> str:
        """Return what a job has printed so far."""

    def follow(self, job_id: str) -> Iterator[str]:
        """Yield what a job has printed and prints, in pieces of any length, to its end."""
