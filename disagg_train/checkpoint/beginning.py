"""What a run begins with: nothing, a checkpoint of its own, or an earlier run's weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from disagg_train.checkpoint.manifest import CheckpointStore, Manifest, read_manifest
from disagg_train.checkpoint.reader import CheckpointReader
from disagg_train.checkpoint.same_run import check_same_run
from disagg_train.config.job import JobConfig
from disagg_train.errors import ConfigError


@dataclass(frozen=True)
class Beginning:
    """The checkpoint that a run goes on from.

    Args:
        manifest: the checkpoint's; None where the run begins anew.
        folder: where it lies.
        notes: what people should know of newer ones.
    """

    manifest: Manifest | None = None
    folder: str = ""
    notes: Sequence[str] = ()

    @property
    def step(self) -> int:
        """Steps done before."""
        return 0 if self.manifest is None else self.manifest.step


def find_beginning(job: JobConfig, store: CheckpointStore, resume: str | None) -> Beginning:
    """Return the checkpoint to go on from, and where it lies.

    Args:
        job: that goes on.
        store: its own checkpoints.
        resume: ``auto`` for the newest sound one of these; a folder names one; None for none.

    Raises:
        CheckpointError: the one that was named is damaged.
        ConfigError: it is of another run.
    """
    if resume is None:
        return Beginning()
    if resume == "auto":
        found, notes = store.newest_sound()
        beginning = Beginning(found, "" if found is None else store.address(found.step), notes)
    else:
        with CheckpointReader(resume) as checkpoint:
            checkpoint.verify()
            beginning = Beginning(read_manifest(checkpoint.folder), checkpoint.folder)
    if beginning.manifest is not None:
        check_same_run(beginning.manifest.job, job)
    return beginning


def make_way(store: CheckpointStore, job: JobConfig, begin: int, overwrite: bool) -> None:
    """Remove checkpoints of an earlier run, with more steps than the new one begins with.

    Raises:
        ConfigError: there are some, and they may not be removed.
    """
    later = [step for step in store.steps() if step > begin]
    if later and not overwrite:
        raise ConfigError(
            f"{job.checkpoint_folder} holds checkpoints of an earlier run, up to step "
            f"{later[-1]}; go on with it (--resume auto), remove them (--overwrite), or "
            f"set another `output`"
        )
    if later:
        store.clear(after=begin)


def started_from(job: JobConfig) -> tuple[JobConfig, int]:
    """Return a job with the folder whose weights it starts from, and the steps done there.

    Raises:
        CheckpointError: that has no sound checkpoint.
    """
    if job.start_from is None:
        return job, 0
    folder = Path(job.start_from).expanduser().absolute()
    with CheckpointReader(folder) as checkpoint:
        checkpoint.verify()
        return job.model_copy(update={"start_from": str(folder)}), checkpoint.step
