"""The batches of an encoder of one's own: its inputs as they were loaded, and what is due."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from disagg_train.boundary.exchange import Rows
from disagg_train.boundary.layouts import Side, source_stream
from disagg_train.config.modules import CustomModule
from disagg_train.data.collate import token_numbers
from disagg_train.data.source import DataSource
from disagg_train.engine.batches import Batch, load_samples
from disagg_train.modules.custom import CustomBatch
from disagg_train.planner.step_plan import StepPlan


class CustomBatches:
    """Batches of an encoder of one's own.

    Args:
        module: its part of the job.
        side: its ranks.
        rank: this rank among them.
        source: where samples come from.
        device: where batches go.
    """

    def __init__(
        self, module: CustomModule, side: Side, rank: int, source: DataSource, device: torch.device
    ) -> None:
        self._merge, self._side = module.projector.merge, side
        self._source, self._device = source, device
        self._at = side.grid.coordinates(rank)

    def make(self, plan: StepPlan, microbatch: int, stream_rows: Mapping[str, Rows]) -> Batch:
        """Return a microbatch's inputs; later pipeline stages get what is due alone."""
        del stream_rows
        name, merge = self._side.module, self._merge
        stream = source_stream(plan, self._side, microbatch, self._at["dp"])
        if not stream.num_rows:
            return None
        held = plan.held(name, microbatch, self._at["dp"])
        keys = [plan.samples[i].key for i in held for _ in plan.samples[i].slots.get(name, ())]
        mine_P = token_numbers(stream, merge)[self._at["cp"]]
        return CustomBatch(
            samples=self._load(plan, held) if self._at["pp"] == 0 else (),
            keys=tuple(keys),
            counts=tuple(length * merge for length in stream.lengths),
            tokens_P=torch.from_numpy(mine_P).to(self._device),
            rows=tuple(length * merge // stream.cut.cp for length in stream.padded),
        )

    def _load(self, plan: StepPlan, held: tuple[int, ...]) -> tuple[Tensor, ...]:
        return tuple(
            torch.from_numpy(np.ascontiguousarray(each, np.float32)).to(self._device)
            for sample in load_samples(self._source, plan, held)
            for each in sample.inputs.get(self._side.module, ())
        )
