"""A run at an MLflow tracking server."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

from disagg_train.metrics.trackers import TrackedRun, Tracker

_TRACKER = "mlflow"
_PARAMETERS_AT_ONCE = 100
_LONGEST_PARAMETER = 500
_MILLI = 1000


class MlflowRun(Tracker):
    """Metrics of a run, under its own step numbers, and its job file as parameters.

    A resumed run goes on in the same run, with the parameters that it began with.

    Args:
        experiment: that the run belongs to; made where there is none.
        tracking_uri: address of the server; None for MLflow's own default.
        run: the run.
    """

    def __init__(self, experiment: str, tracking_uri: str | None, run: TrackedRun) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=tracking_uri)
        known = run.known_id(_TRACKER)
        if known is None:
            self._id = self._begin(experiment, run)
            run.keep_id(_TRACKER, self._id)
        else:
            self._id = known
            self._client.update_run(self._id, status="RUNNING")
        super().__init__(0 if known is None else self._first_missing())

    def _begin(self, experiment: str, run: TrackedRun) -> str:
        from mlflow.entities import Param

        found = self._client.get_experiment_by_name(experiment)
        experiment_id = (
            self._client.create_experiment(experiment) if found is None else found.experiment_id
        )
        run_id: str = self._client.create_run(experiment_id, run_name=run.name).info.run_id
        leaves = _leaves(run.content)
        parameters = [Param(key, value[:_LONGEST_PARAMETER]) for key, value in leaves]
        for first in range(0, len(parameters), _PARAMETERS_AT_ONCE):
            self._client.log_batch(run_id, params=parameters[first : first + _PARAMETERS_AT_ONCE])
        return run_id

    def _first_missing(self) -> int:
        known = self._client.get_metric_history(self._id, "train/loss")
        return max((metric.step + 1 for metric in known), default=0)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log scalars of a step."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * _MILLI)
        metrics = [Metric(key, float(value), now_ms, step) for key, value in scalars.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, ok: bool) -> None:
        """End the run."""
        self._client.set_terminated(self._id, status="FINISHED" if ok else "FAILED")


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the values of a job file with their paths; what is empty or not given is left out."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    elif node not in (None, "", []):
        yield path, str(node)
