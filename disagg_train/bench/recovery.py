"""``disagg-train bench recovery``: from a rank's death to the next step, by group and by job.

Two runs of one job live side by side, one of them idle; only ``recovery.restart`` differs. The
encoder's rank is killed in the one and then in the other. By group, the state comes from copies
in memory, made as often as the driver chooses; by job, from the newest checkpoint.
"""

import os
import signal
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal, Self, cast

from actors.cluster import RayConnection
from actors.session import Session, on_cluster
from disagg_train.bench.jobs import stateful_job, with_steps
from disagg_train.bench.machine import commit, hardware
from disagg_train.bench.statistics import Interval, bootstrap_interval
from disagg_train.checkpoint.manifest import CheckpointStore
from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.data.index import checked_sizes
from disagg_train.data.source import open_source
from disagg_train.driver.commitment import BadSamples
from disagg_train.engine.setup import StateSource
from disagg_train.errors import ConfigError
from disagg_train.metrics.records import Evaluation, StepRecord
from disagg_train.training import TrainingRun

_LANGUAGE_RANKS = 2
_STEPS = 1_000_000
_CHECKPOINT_STEPS, _STEPS_BEFORE, _STEPS_BETWEEN = 10, 20, 7
_VICTIM = "encoders"

Restart = Literal["group", "job"]
_RESTARTS: tuple[Restart, Restart] = ("group", "job")


@dataclass(frozen=True)
class Recovery:
    """What one death took.

    Args:
        to_first_step_s: from the kill to the first completed step, be it one that is run again.
        to_lost_step_s: from the kill to the completion of the step that it hit.
        steps_again: steps that were complete and had to be run again.
        kept_processes: ranks whose process is the one from before.
    """

    to_first_step_s: float
    to_lost_step_s: float
    steps_again: int
    kept_processes: int


@dataclass(frozen=True)
class RecoveryResult:
    """Recoveries by group and by job; seconds are medians.

    Args:
        group_s: by group, from the death to the first completed step.
        job_s: the same by job.
        ratio: median over the pairs, by group / by job.
        ratio_interval_95: bootstrap interval of that median.
        group_to_lost_step_s: by group, from the death to the end of the step that it hit.
        job_to_lost_step_s: the same by job.
        survivors: ranks outside of the group that was hit.
        checkpoint_every_steps: of both runs.
        faults: per kind of restart.
        ranks: of the job.
        by_group: every recovery.
        by_job: every recovery.
        hardware: the machine.
        commit: of the checkout.
    """

    group_s: float
    job_s: float
    ratio: float
    ratio_interval_95: Interval
    group_to_lost_step_s: float
    job_to_lost_step_s: float
    survivors: int
    checkpoint_every_steps: int
    faults: int
    ranks: int
    by_group: Sequence[Recovery]
    by_job: Sequence[Recovery]
    hardware: Mapping[str, str | int]
    commit: str

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return asdict(self)


def run_recovery(faults: int, num_layers: int) -> RecoveryResult:
    """Kill ranks and measure how long training stands still.

    Args:
        faults: per kind of restart.
        num_layers: of each module, which makes the size of the state.

    Raises:
        ConfigError: there is no fault to measure.
        RankError: a run did not survive.
    """
    if faults < 1:
        raise ConfigError(f"faults={faults}: use at least 1")
    num_ranks = 1 + _LANGUAGE_RANKS
    with ExitStack() as stack:
        stack.callback(RayConnection(None, 2 * num_ranks).close)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        by_group, by_job = (
            stack.enter_context(_Run(_job(restart, folder / restart, num_layers)))
            for restart in _RESTARTS
        )
        for run in (by_group, by_job):
            run.train_to(_STEPS_BEFORE)
        pairs = [(by_group.recover(), by_job.recover()) for _ in range(faults)]
    return _result(pairs, num_ranks)


def _result(pairs: Sequence[tuple[Recovery, Recovery]], num_ranks: int) -> RecoveryResult:
    by_group, by_job = [group for group, _ in pairs], [job for _, job in pairs]
    ratios = [group.to_first_step_s / job.to_first_step_s for group, job in pairs]
    return RecoveryResult(
        group_s=median(each.to_first_step_s for each in by_group),
        job_s=median(each.to_first_step_s for each in by_job),
        ratio=median(ratios),
        ratio_interval_95=bootstrap_interval(ratios),
        group_to_lost_step_s=median(each.to_lost_step_s for each in by_group),
        job_to_lost_step_s=median(each.to_lost_step_s for each in by_job),
        survivors=_LANGUAGE_RANKS,
        checkpoint_every_steps=_CHECKPOINT_STEPS,
        faults=len(pairs),
        ranks=num_ranks,
        by_group=by_group,
        by_job=by_job,
        hardware=hardware(),
        commit=commit(),
    )


def _job(restart: Restart, output: Path, num_layers: int) -> JobConfig:
    return load_job(
        with_steps(stateful_job(num_layers, _LANGUAGE_RANKS), _STEPS),
        [
            f"output={output}",
            f"recovery.restart={restart}",
            f"recovery.max_restarts={_STEPS}",
            f"checkpoint.every_steps={_CHECKPOINT_STEPS}",
            "checkpoint.every_minutes=0",
            "checkpoint.keep=1",
        ],
    )


class _Run:
    """A run whose ranks are killed now and then; a context manager that ends it.

    Args:
        job: the job.
    """

    def __init__(self, job: JobConfig) -> None:
        Path(job.output).mkdir()
        self._run = TrainingRun(
            job,
            checked_sizes(open_source(job), job, "train"),
            BadSamples(job.data.max_bad_samples),
            CheckpointStore(job.checkpoint_folder),
            None,
            "",
            self._open_session,
            _evaluate_nothing,
        )
        self._steps = self._run.steps()
        self._steps_done = 0

    def _open_session(self, job: JobConfig, source: StateSource | None) -> Session:
        self._session = on_cluster(job, source, job.recovery.restart == "group")
        return self._session

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        cast("Generator[StepRecord]", self._steps).close()
        self._run.close()

    def train_to(self, steps_done: int) -> None:
        """Train until so many steps are done."""
        while self._steps_done < steps_done:
            self._train()

    def recover(self) -> Recovery:
        """Train a little, kill the encoder's rank, and train until the loss is made up for."""
        self.train_to(self._steps_done + _STEPS_BETWEEN)
        before, done = self._processes, self._steps_done
        os.kill(before[_VICTIM, 0], signal.SIGKILL)
        killed_s = perf_counter()
        self._train()
        to_first_step_s, restored = perf_counter() - killed_s, self._steps_done - 1
        self.train_to(done + 1)
        to_lost_step_s, after = perf_counter() - killed_s, self._processes
        kept = sum(after[rank] == process for rank, process in before.items())
        return Recovery(to_first_step_s, to_lost_step_s, done - restored, kept)

    @property
    def _processes(self) -> dict[tuple[str, int], int]:
        """Process of every rank, by group and number in it."""
        groups = self._session.groups
        return {(g.name, rank): home.pid for g in groups for rank, home in enumerate(g.homes)}

    def _train(self) -> None:
        self._steps_done = next(self._steps).step + 1


def _evaluate_nothing(session: Session, step: int) -> Evaluation:
    raise AssertionError("the job has no held-out samples")
