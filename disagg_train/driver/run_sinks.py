"""Where a run's numbers go as it trains: TensorBoard, trackers, and whatever else is given."""

import importlib.util
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from disagg_train.config.job import JobConfig
from disagg_train.config.secret_values import masked, masked_content
from disagg_train.config.sinks import MlflowConfig, SinksConfig, WandbConfig
from disagg_train.driver.flops import Utilization
from disagg_train.errors import ConfigError
from disagg_train.metrics.background import BackgroundSink, Entry
from disagg_train.metrics.measures import Standing, measure
from disagg_train.metrics.records import Evaluation, RankReport, StepRecord
from disagg_train.metrics.sinks import Sink
from disagg_train.metrics.trackers import TrackedRun
from disagg_train.planner.step_plan import SampleSize

_PATIENCE_S = {True: 30.0, False: 5.0}
"""How long sinks may take to end, by whether the run came to its own end: else there is a hurry."""
_NOT_TRACKED: dict[str, Any] = {
    "environment": True,
    "kubernetes": True,
    "groups": {"__all__": {"environment"}},
}
"""Fields of a job that trackers are not told: variables of its processes, and of its pods."""
OpenSink = Callable[[], Sink]


def check_sinks(config: SinksConfig) -> None:
    """Refuse sinks that cannot work here, before anything is started.

    Raises:
        ConfigError: a package, or the key of Weights & Biases, is missing.
    """
    for name in ("wandb", "mlflow"):
        if getattr(config, name) is not None and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"sinks.{name} is set, but {name} is not installed; "
                f"pip install 'disagg_train[{name}]', or remove sinks.{name}"
            )
    if config.wandb is not None:
        _check_key(config.wandb)


def _check_key(config: WandbConfig) -> None:
    """Refuse to go online without a key: the library would ask for one, and nobody is there."""
    if (config.mode or os.environ.get("WANDB_MODE", "online")) != "online":
        return
    import wandb

    try:
        has_key = wandb.login(prompt=False, verify=False)
    except wandb.Error as error:
        raise ConfigError(f"sinks.wandb: {masked(str(error))}") from None
    if not has_key:
        raise ConfigError(
            "sinks.wandb is set, but there is no key of Weights & Biases here; run `wandb login`, "
            "set WANDB_API_KEY, or set sinks.wandb.mode: offline"
        )


class RunSinks:
    """Gives every step to all sinks of a run; none of them can slow or end the training.

    Args:
        job: says which sinks there are.
        steps_done: training steps that the run has behind it.
        skipped: those of them whose update was skipped.
        gpu_kinds: per group, the kind of its GPUs, as far as known.
        more: sinks that are made elsewhere, by name.
    """

    def __init__(
        self,
        job: JobConfig,
        steps_done: int,
        skipped: Iterable[int] = (),
        gpu_kinds: Mapping[str, str] | None = None,
        more: Mapping[str, OpenSink] | None = None,
    ) -> None:
        self._gpu_kinds = gpu_kinds or {}
        self._skipped = set(skipped)
        self._notes: list[str] = []
        self.lay_out(job)
        opened = _configured(job, steps_done) | dict(more or {})
        self._sinks = [BackgroundSink(name, open_sink) for name, open_sink in opened.items()]

    def lay_out(self, job: JobConfig) -> None:
        """Know that the job runs on other ranks from now on."""
        self._utilization = Utilization(job, self._gpu_kinds)

    def add_step(
        self,
        record: StepRecord,
        reports: Sequence[RankReport],
        samples: Sequence[SampleSize],
        standing: Standing,
    ) -> None:
        """Give all sinks a step.

        Args:
            record: of the step.
            reports: of all ranks.
            samples: that the step took.
            standing: of the run; steps whose update was skipped are counted here.
        """
        if not self._sinks:
            return
        self._skipped |= {record.step} if record.skipped else set()
        standing = replace(standing, skipped_steps=len(self._skipped))
        mfu = self._utilization.mfu(samples, record.step_time_s)
        measures = measure(record, reports, standing, mfu)
        self._put(lambda sink: sink.add_step(measures))

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Give all sinks an evaluation."""
        self._put(lambda sink: sink.add_evaluation(evaluation))

    def rewind(self, steps_done: int) -> None:
        """Tell all sinks that later steps are taken back."""
        self._skipped = {step for step in self._skipped if step < steps_done}
        self._put(lambda sink: sink.rewind(steps_done))

    def take_notes(self) -> list[str]:
        """Return what people should know, and has not been returned before."""
        notes, self._notes = self._notes, []
        notes += [note for sink in self._sinks for note in sink.take_notes()]
        return [masked(note) for note in notes]

    def close(self, ok: bool = False) -> None:
        """End all sinks; those that hang are left alone after a while.

        Args:
            ok: whether the run came to its last step.
        """
        ending, self._sinks = self._sinks, []
        for sink in ending:
            sink.end(ok)
        until_s = time.monotonic() + _PATIENCE_S[ok]
        self._notes += [note for sink in ending for note in sink.await_end(until_s)]

    def _put(self, entry: Entry) -> None:
        for sink in self._sinks:
            sink.put(entry)


def _configured(job: JobConfig, steps_done: int) -> dict[str, OpenSink]:
    """Return what opens each sink that the job names; libraries are loaded on its thread."""
    config, output = job.sinks, Path(job.output)
    content = masked_content(job.model_dump(mode="json", exclude=_NOT_TRACKED))
    run = TrackedRun(job.name, content, output, steps_done)
    found: dict[str, OpenSink] = {}
    if config.tensorboard:
        found["tensorboard"] = partial(_tensorboard, output / "tensorboard", steps_done)
    if config.wandb is not None:
        found["wandb"] = partial(_wandb, config.wandb, run)
    if config.mlflow is not None:
        found["mlflow"] = partial(_mlflow, config.mlflow, run)
    return found


def _tensorboard(folder: Path, steps_done: int) -> Sink:
    from disagg_train.metrics.tensorboard import TensorBoard

    return TensorBoard(folder, steps_done)


def _wandb(about: WandbConfig, run: TrackedRun) -> Sink:
    from disagg_train.metrics.weights_and_biases import WeightsAndBiases

    return WeightsAndBiases(about.project, about.entity, about.mode, run)


def _mlflow(about: MlflowConfig, run: TrackedRun) -> Sink:
    from disagg_train.metrics.mlflow_runs import MlflowRun

    return MlflowRun(about.experiment, about.tracking_uri, run)
