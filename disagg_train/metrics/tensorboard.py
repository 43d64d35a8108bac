"""TensorBoard event files, written without TensorFlow or torch."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from disagg_train.metrics.measures import Measures, evaluated_step, evaluation_scalars
from disagg_train.metrics.records import Evaluation

_FILES = "events.out.tfevents."
_VERSION = "brain.Event:2"


class TensorBoard:
    """Scalars of one start of a run, in an event file of their own.

    TensorBoard shows a folder's files as one run. Where steps come again, after a failure or from
    a checkpoint, it is told so by the event with which TensorFlow marks a restart: all points of
    that step and later are forgotten.

    Args:
        folder: of the event files; a new run removes those of an earlier one.
        steps_done: training steps that the run has behind it.
    """

    def __init__(self, folder: Path, steps_done: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if not steps_done:
            for old in folder.glob(f"{_FILES}*"):
                old.unlink()
        start = f"{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((folder / f"{_FILES}{start}").open("xb"))
        self._write(file_version=_VERSION)
        self.rewind(steps_done)

    def add_step(self, measures: Measures) -> None:
        """Write a step's scalars."""
        self._write_scalars(measures.record.step, measures.scalars())

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Write an evaluation's scalars."""
        self._write_scalars(evaluated_step(evaluation), evaluation_scalars(evaluation))

    def rewind(self, steps_done: int) -> None:
        """Have TensorBoard forget the points of all steps but the first ones."""
        self._write(step=steps_done, session_log=SessionLog(status=SessionLog.START))

    def close(self, ok: bool) -> None:
        """Close the file."""
        del ok
        self._records.close()

    def _write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._write(step=step, summary=Summary(value=values))

    def _write(self, **content: Any) -> None:
        self._records.write(Event(wall_time=time.time(), **content).SerializeToString())
        self._records.flush()
