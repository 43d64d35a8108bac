"""A rank's samples, decoded on threads of their own while the step before runs.

A sample is decoded once, whichever of the rank's modules need it, and of its inputs those that
they need. Only the samples of steps that wait to be run are kept.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from disagg_train.config.models import PatchConfig
from disagg_train.config.modules import EncoderModule, TransformerModule
from disagg_train.data.index import check_sample
from disagg_train.data.source import DataSource, Sample, Split, load_part
from disagg_train.errors import DataError
from disagg_train.metrics.records import BadSample
from disagg_train.planner.step_plan import SampleSize, StepPlan

Lane = tuple[str, int]
"""A module and the dp rank whose samples are loaded."""


class SampleLoader:
    """A data source that has begun to load what it will be asked for.

    Args:
        source: where samples come from.
        lanes: of the rank's modules.
        encoders: of the job, whose inputs are held against the index.
        num_threads: on which samples are decoded.
    """

    def __init__(
        self,
        source: DataSource,
        lanes: Iterable[Lane],
        encoders: Mapping[str, EncoderModule],
        num_threads: int,
    ) -> None:
        self._source, self._lanes, self._encoders = source, tuple(set(lanes)), encoders
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="samples")
        self._lock = Lock()
        self._wanted: dict[int, frozenset[int]] = {}
        self._loading: dict[int, Future[Sample]] = {}

    def start(self, plan: StepPlan) -> None:
        """Begin to load the samples of a step that this rank holds.

        Another plan of the same step takes the first one's place; what both hold stays.
        """
        sizes = {plan.samples[i].key: plan.samples[i] for i in self._held(plan)}
        with self._lock:
            self._wanted[plan.step] = frozenset(sizes)
            self._drop_unwanted()
            for key, size in sizes.items():
                if key not in self._loading:
                    self._loading[key] = self._threads.submit(self._load, size)

    def bad(self, plan: StepPlan) -> tuple[BadSample, ...]:
        """Wait for a step's samples; return those that cannot be used, by key."""
        self.start(plan)
        with self._lock:
            loading = {key: self._loading[key] for key in sorted(self._wanted[plan.step])}
        errors = {key: future.exception() for key, future in loading.items()}
        for error in errors.values():
            if error is not None and not isinstance(error, DataError):
                raise error
        return tuple(BadSample(key, str(error)) for key, error in errors.items() if error)

    def forget(self, plan: StepPlan) -> None:
        """Let go of a step's samples."""
        with self._lock:
            self._wanted.pop(plan.step, None)
            self._drop_unwanted()

    def load(self, key: int) -> Sample:
        """Return a sample, waiting for it where it is not ready.

        Raises:
            DataError: it cannot be used.
        """
        with self._lock:
            loading = self._loading.get(key)
        return self._source.load(key) if loading is None else loading.result()

    def sizes(self, split: Split) -> Sequence[SampleSize]:
        """Return the sizes of all samples of a split."""
        return self._source.sizes(split)

    def text(self, token_ids: Sequence[int]) -> str:
        """Return generated tokens as text."""
        return self._source.text(token_ids)

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(cancel_futures=True)

    def _held(self, plan: StepPlan) -> list[int]:
        """Return the indices of the plan's samples that this rank loads, first needed first."""
        held = {
            index: None
            for microbatch in range(plan.num_microbatches)
            for module, dp_rank in self._lanes
            for index in plan.held(module, microbatch, dp_rank)
        }
        return list(held)

    def _drop_unwanted(self) -> None:
        wanted = {key for keys in self._wanted.values() for key in keys}
        for key in self._loading.keys() - wanted:
            self._loading.pop(key).cancel()

    def _load(self, size: SampleSize) -> Sample:
        """Load what this rank needs of a sample and hold it against the index.

        Raises:
            DataError: it cannot be read, or is not what the index says.
        """
        encoders = {module for module, _ in self._lanes if module in self._encoders}
        try:
            sample = load_part(self._source, size.key, encoders)
        except OSError as error:
            raise DataError(f"{self._name(size.key)} cannot be read: {error}") from None
        expected = {e: counts for e, counts in size.input_tokens.items() if e in encoders}
        check_sample(sample, replace(size, input_tokens=expected))
        for encoder, counts in expected.items():
            module = self._encoders[encoder]
            if isinstance(module, TransformerModule):
                found = tuple(_num_tokens(module, values) for values in sample.inputs[encoder])
                if found != counts:
                    raise DataError(
                        f"{self._name(size.key)} has inputs of {list(found)} tokens for "
                        f"{encoder!r} where its index says {list(counts)}; a file has changed, "
                        f"rebuild the index"
                    )
        return sample

    def _name(self, key: int) -> str:
        """Return what the source calls a sample in messages, where it says so."""
        name_of = getattr(self._source, "name_of", None)
        return str(name_of(key)) if name_of else f"sample {key}"


def _num_tokens(module: TransformerModule, values: NDArray[np.float32]) -> int:
    """Return the tokens that an encoder computes on; a class token is not counted."""
    if isinstance(module.model, PatchConfig):
        side = module.model.patch_size
        return (values.shape[0] // side) * (values.shape[1] // side)
    return len(values) // 2
