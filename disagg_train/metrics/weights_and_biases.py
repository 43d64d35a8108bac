"""A run at Weights & Biases."""

from collections.abc import Mapping
from uuid import uuid4

from disagg_train.metrics.trackers import TrackedRun, Tracker

_TRACKER = "wandb"


class WeightsAndBiases(Tracker):
    """Scalars of a run, under its own step numbers.

    The console, the code and the git state stay here. A resumed run goes on in the same run.

    Args:
        project: that the run belongs to.
        entity: team or user; the key's own where None.
        mode: `online`, `offline`, or what the environment says where None.
        run: the run.
    """

    def __init__(self, project: str, entity: str | None, mode: str | None, run: TrackedRun) -> None:
        import wandb

        run_id = run.known_id(_TRACKER) or uuid4().hex
        self._run = wandb.init(
            project=project,
            entity=entity,
            mode=mode,
            name=run.name,
            id=run_id,
            resume="allow",
            config=dict(run.content),
            dir=str(run.output),
            save_code=False,
            settings=wandb.Settings(console="off", disable_git=True, silent=True),
        )
        run.keep_id(_TRACKER, run_id)
        super().__init__(self._run.step)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log scalars of a step."""
        self._run.log(dict(scalars), step=step)

    def close(self, ok: bool) -> None:
        """End the run."""
        self._run.finish(exit_code=0 if ok else 1)
