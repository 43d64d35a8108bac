"""A step's inputs on one rank: its samples loaded and packed, its exchanges worked out.

They are made on threads of their own while the step before runs.
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

from disagg_train.boundary.step_exchanges import RankEdge, RankExchanges
from disagg_train.engine.batches import Batch, BatchMaker
from disagg_train.engine.samples import SampleLoader
from disagg_train.metrics.records import BadSample
from disagg_train.planner.step_plan import StepPlan


@dataclass(frozen=True)
class StepInputs:
    """What one rank needs to run one step.

    Args:
        batches: per module of the rank, its batch of each microbatch.
        exchanges: per edge of the rank, its part in each microbatch.
    """

    batches: Mapping[str, tuple[Batch, ...]]
    exchanges: Mapping[str, tuple[RankExchanges, ...]]


class InputLoader:
    """Makes step inputs ahead of time.

    Args:
        samples: where the makers have their samples from.
        makers: per module of the rank, what turns samples into batches.
        edges: boundaries and stage links that this rank is part of.
        place: its global rank.
    """

    def __init__(
        self,
        samples: SampleLoader,
        makers: Mapping[str, BatchMaker],
        edges: Mapping[str, RankEdge],
        place: int,
    ) -> None:
        self._samples, self._makers, self._edges, self._place = samples, makers, edges, place
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inputs")
        self._lock = Lock()
        self._ahead: dict[int, tuple[int, Future[StepInputs]]] = {}

    def prefetch(self, plan: StepPlan) -> None:
        """Start making a step's inputs; another plan of the same step is forgotten."""
        self._start(plan)

    def probe(self, plan: StepPlan) -> tuple[BadSample, ...]:
        """Load a step's samples and return the bad ones; without any, start making inputs."""
        bad = self._samples.bad(plan)
        if not bad:
            self._start(plan)
        return bad

    def take(self, plan: StepPlan) -> StepInputs:
        """Return a step's inputs, waiting for them where they are not ready.

        Raises:
            DataError: a sample is not what its index says.
        """
        inputs = self._start(plan).result()
        self._ahead.pop(plan.step, None)
        self._samples.forget(plan)
        return inputs

    def peek(self, plan: StepPlan) -> StepInputs:
        """Return a step's inputs and keep them for ``take``.

        Raises:
            DataError: a sample is not what its index says.
        """
        return self._start(plan).result()

    def close(self) -> None:
        """Stop the threads."""
        self._samples.close()
        self._thread.shutdown(cancel_futures=True)

    def _start(self, plan: StepPlan) -> "Future[StepInputs]":
        with self._lock:
            digest, making = self._ahead.get(plan.step, (None, None))
            if making is None or digest != plan.digest:
                self._samples.start(plan)
                making = self._thread.submit(self._make, plan)
                self._ahead[plan.step] = plan.digest, making
            return making

    def _make(self, plan: StepPlan) -> StepInputs:
        exchanges = {name: edge.exchanges(plan, self._place) for name, edge in self._edges.items()}
        stream_rows = {name: [e.stream_rows for e in each] for name, each in exchanges.items()}
        batches = {
            module: tuple(
                maker.make(
                    plan, microbatch, {n: rows[microbatch] for n, rows in stream_rows.items()}
                )
                for microbatch in range(plan.num_microbatches)
            )
            for module, maker in self._makers.items()
        }
        return StepInputs(batches, exchanges)
