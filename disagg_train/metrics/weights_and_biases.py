"""A run at Weights & Biases."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from disagg_train.metrics.trackers import Tracker, keep_id, known_id

_TRACKER = "wandb"


class WeightsAndBiases(Tracker):
    """Scalars of a run, under its own step numbers.

    The console, the code and the git state stay here. A resumed run goes on in the same run.

    Args:
        project: that the run belongs to.
        entity: team or user; the key's own where None.
        mode: `online`, `offline`, or what the environment says where None.
        name: of the run.
        content: of the job file.
        output: folder of the run.
        steps_done: training steps that the run has behind it.
    """

    def __init__(
        self,
        project: str,
        entity: str | None,
        mode: str | None,
        name: str,
        content: Mapping[str, Any],
        output: Path,
        steps_done: int,
    ) -> None:
        import wandb

        known = known_id(output, _TRACKER) if steps_done else None
        run_id = known or uuid4().hex
        self._run = wandb.init(
            project=project,
            entity=entity,
            mode=mode,
            name=name,
            id=run_id,
            resume="allow",
            config=dict(content),
            dir=str(output),
            save_code=False,
            settings=wandb.Settings(console="off", disable_git=True, silent=True),
        )
        keep_id(output, _TRACKER, run_id)
        super().__init__(self._run.step)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log scalars of a step."""
        self._run.log(dict(scalars), step=step)

    def close(self, ok: bool) -> None:
        """End the run."""
        self._run.finish(exit_code=0 if ok else 1)
