"""A run's numbers as metrics of Ray, which Prometheus scrapes at the driver's node.

Ray exports them as ``ray_disagg_train_...`` every 10 s. Counts of rare events (restarts, skipped
samples) are gauges of the run's total so far: a counter of Ray's does not exist before it is first
raised, so that Prometheus would miss the first restart.

Ray forgets a gauge that was not set for two of its export intervals, and a step may take longer,
or come late after a failure. So all of them are set again and again until the run ends.
"""

import threading
from collections.abc import Iterator
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from disagg_train.metrics.measures import Measures, evaluation_scalars
from disagg_train.metrics.records import Evaluation

_PREFIX = "disagg_train_"
_AGAIN_S = 1.0
"""Ray exports every 10 s unless told otherwise, and never more often than this."""
_STEP_TIMES_S = [0.05, 0.1, 0.2, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120, 300, 600]
"""From a demo on a laptop to the largest jobs; closest where most jobs are."""

_OF_THE_RUN = {
    "step": "Training steps done",
    "last_step_seconds": "Time of the newest step, in seconds",
    "loss": "Loss per target token",
    "grad_norm": "Norm of the gradient over all modules, before clipping",
    "learning_rate": "Learning rate",
    "loss_scale": "Loss scale, with fp16",
    "tokens_per_second": "Tokens of the LLM's streams per second",
    "target_tokens_per_second": "Tokens with a label per second",
    "mfu": "Model FLOPs over the peak of all GPUs, 0 to 1; only on GPUs of known kinds",
    "bubble": "Part of the step in which a rank computes nothing, 0 to 1, mean of all ranks",
    "peak_boundary_bytes": "Most memory of a rank that received rows and messages took, in bytes",
    "peak_activation_bytes": "Most activations of a rank, in bytes; of traced steps",
    "skipped_steps": "Steps so far whose update was skipped",
    "skipped_samples": "Bad samples so far that were taken out",
    "restarts": "Restarts so far after a failure",
    "checkpoints": "Complete checkpoints written since the driver was started",
    "steps_at_risk": "Steps that a failure would have to run again",
}
_OF_A_MODULE = {
    "module_bubble": "Part of the step in which a rank of the module computes nothing, 0 to 1",
    "module_forward_seconds": "Time of forwards, slowest rank of the module, in seconds",
    "module_backward_seconds": "Time of backwards, slowest rank of the module, in seconds",
    "module_boundary_seconds": "Time of transfers and their waits, slowest rank, in seconds",
}


class RayMetrics:
    """Sets the metrics of one run.

    Args:
        run: name of the run, in the tag ``run`` of every metric.
    """

    def __init__(self, run: str) -> None:
        self._tags = {"run": run}
        self._shown: dict[tuple[int, tuple[tuple[str, str], ...]], tuple[Any, float]] = {}
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._gauges = {name: self._gauge(name, text) for name, text in _OF_THE_RUN.items()}
        self._modules = {
            name: self._gauge(name, text, "module") for name, text in _OF_A_MODULE.items()
        }
        load = "Bytes sent across a boundary, both directions, over the step time, in 10^9 per s"
        self._loads = self._gauge("boundary_gbytes_per_second", load, "boundary")
        self._queues = self._gauge("queue_depth", "Length of a queue of the driver", "queue")
        self._scores = self._gauge("evaluation", "Newest score on held-out samples", "score")
        self._step_time: Any = Histogram(
            f"{_PREFIX}step_time_seconds", "Time of a step, in seconds", _STEP_TIMES_S, ("run",)
        ).set_default_tags(self._tags)
        self._steps = self._counter("steps", "Steps run, those that ran again included")
        self._tokens = self._counter("tokens", "Tokens of the LLM's streams, of all steps run")
        threading.Thread(target=self._keep_showing, name="metrics", daemon=True).start()

    def _gauge(self, name: str, text: str, *more_tags: str) -> Any:
        gauge = Gauge(f"{_PREFIX}{name}", text, ("run", *more_tags))
        return gauge.set_default_tags(self._tags)

    def _counter(self, name: str, text: str) -> Any:
        counter = Counter(f"{_PREFIX}{name}_total", text, ("run",))
        return counter.set_default_tags(self._tags)

    def _show(self, gauge: Any, value: float, **tags: str) -> None:
        with self._lock:
            self._shown[id(gauge), tuple(tags.items())] = gauge, value
            gauge.set(value, tags)

    def _keep_showing(self) -> None:
        while not self._ended.wait(_AGAIN_S):
            with self._lock:
                for (_, tags), (gauge, value) in self._shown.items():
                    gauge.set(value, dict(tags))

    def add_step(self, measures: Measures) -> None:
        """Set all metrics to a step's."""
        record = measures.record
        self._step_time.observe(record.step_time_s)
        self._steps.inc()
        self._tokens.inc(max(record.num_tokens, 1))
        for name, value in _of_the_run(measures):
            if value is not None:
                self._show(self._gauges[name], value)
        for name, module, value in _of_modules(measures):
            self._show(self._modules[name], value, module=module)
        for boundary, load in measures.boundary_gbytes_per_s.items():
            self._show(self._loads, load, boundary=boundary)
        for queue, length in measures.standing.queues.items():
            self._show(self._queues, length, queue=queue)

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Set the scores to an evaluation's."""
        for name, value in evaluation_scalars(evaluation).items():
            self._show(self._scores, value, score=name.rpartition("/")[2])

    def rewind(self, steps_done: int) -> None:
        """Show how many steps are left; all else stays until a step is done."""
        self._show(self._gauges["step"], steps_done)

    def close(self, ok: bool) -> None:
        """Leave the gauges to be forgotten; counters stay as long as the process."""
        del ok
        self._ended.set()


def _of_the_run(measures: Measures) -> Iterator[tuple[str, float | None]]:
    record, standing = measures.record, measures.standing
    yield "step", record.step + 1
    yield "last_step_seconds", record.step_time_s
    yield "loss", record.loss
    yield "grad_norm", record.grad_norm
    yield "learning_rate", record.lr
    yield "loss_scale", record.loss_scale
    yield "tokens_per_second", record.tokens_per_s
    yield "target_tokens_per_second", measures.target_tokens_per_s
    yield "mfu", measures.mfu
    yield "bubble", measures.bubble
    yield "peak_boundary_bytes", record.peak_boundary_bytes
    yield "peak_activation_bytes", record.peak_activation_bytes or None
    yield "skipped_steps", standing.skipped_steps
    yield "skipped_samples", record.num_bad_samples
    yield "restarts", standing.restarts
    yield "checkpoints", standing.checkpoints
    yield "steps_at_risk", standing.steps_at_risk


def _of_modules(measures: Measures) -> Iterator[tuple[str, str, float]]:
    for module, times in measures.record.modules.items():
        yield "module_forward_seconds", module, times.forward_s
        yield "module_backward_seconds", module, times.backward_s
        yield "module_boundary_seconds", module, times.boundary_s
    for module, bubble in measures.module_bubble.items():
        yield "module_bubble", module, bubble
