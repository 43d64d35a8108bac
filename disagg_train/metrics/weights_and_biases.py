"""A run at Weights & Biases."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from disagg_train.metrics.measures import Measures, evaluated_step, evaluation_scalars
from disagg_train.metrics.records import Evaluation
from disagg_train.metrics.tracker_ids import Frontier, keep_id, known_id

_TRACKER = "wandb"


class WeightsAndBiases:
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
        self._frontier = Frontier(self._run.step)

    def add_step(self, measures: Measures) -> None:
        """Log a step's scalars, unless it is there already."""
        step = measures.record.step
        if self._frontier.pass_step(step):
            self._run.log(measures.scalars(), step=step)

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Log an evaluation's scalars with the step before it."""
        step = evaluated_step(evaluation)
        if self._frontier.pass_evaluation(step):
            self._run.log(evaluation_scalars(evaluation), step=step)

    def rewind(self, steps_done: int) -> None:
        """Do nothing: what was logged stays."""

    def close(self, ok: bool) -> None:
        """End the run."""
        self._run.finish(exit_code=0 if ok else 1)
