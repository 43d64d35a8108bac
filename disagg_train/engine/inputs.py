"""A step's inputs on one rank: its samples loaded and packed, its exchanges worked out.

They are made on a thread of their own while the step before runs.
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from disagg_train.boundary.step_exchanges import Boundary, RankExchanges, step_exchanges
from disagg_train.config.job import JobConfig
from disagg_train.config.modules import VitModule
from disagg_train.data.collate import pack_images, pack_text
from disagg_train.data.index import check_sample
from disagg_train.data.source import DataSource, Sample
from disagg_train.modules.batch import EncoderBatch, LanguageBatch
from disagg_train.planner.step_plan import StepPlan

Batch = EncoderBatch | LanguageBatch | None


@dataclass(frozen=True)
class StepInputs:
    """What one rank needs to run one step.

    Args:
        batches: per module of the rank, its batch of each microbatch.
        exchanges: per boundary of the rank, its part in each microbatch.
    """

    batches: Mapping[str, tuple[Batch, ...]]
    exchanges: Mapping[str, tuple[RankExchanges, ...]]


class InputLoader:
    """Makes step inputs ahead of time.

    Args:
        job: the job.
        source: where samples come from.
        dp_ranks: this rank's dp coordinate in each of its modules.
        boundaries: boundaries that this rank is part of.
        place: its global rank.
        device: where batches go.
    """

    def __init__(
        self,
        job: JobConfig,
        source: DataSource,
        dp_ranks: Mapping[str, int],
        boundaries: Mapping[str, Boundary],
        place: int,
        device: torch.device,
    ) -> None:
        self._job, self._source, self._dp_ranks = job, source, dp_ranks
        self._boundaries, self._place, self._device = boundaries, place, device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inputs")
        self._ahead: dict[int, Future[StepInputs]] = {}

    def prefetch(self, plan: StepPlan) -> None:
        """Start making a step's inputs."""
        if plan.digest not in self._ahead:
            self._ahead[plan.digest] = self._thread.submit(self._make, plan)

    def take(self, plan: StepPlan) -> StepInputs:
        """Return a step's inputs, waiting for them where they are not ready.

        Raises:
            DataError: a sample is not what its index says.
        """
        self.prefetch(plan)
        return self._ahead.pop(plan.digest).result()

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _make(self, plan: StepPlan) -> StepInputs:
        exchanges = {
            name: step_exchanges(plan, boundary, self._place)
            for name, boundary in self._boundaries.items()
        }
        batches = {
            module: tuple(
                self._batch(plan, module, microbatch, exchanges)
                for microbatch in range(plan.num_microbatches)
            )
            for module in self._dp_ranks
        }
        return StepInputs(batches, exchanges)

    def _batch(
        self,
        plan: StepPlan,
        name: str,
        microbatch: int,
        exchanges: Mapping[str, tuple[RankExchanges, ...]],
    ) -> Batch:
        samples = []
        for index in plan.held(name, microbatch, self._dp_ranks[name]):
            sample = self._source.load(plan.samples[index].key)
            check_sample(sample, plan.samples[index])
            samples.append(sample)
        module = self._job.modules[name]
        if isinstance(module, VitModule):
            return self._encoder_batch(name, module, samples)
        rows = {
            boundary.source.module: self._tensor(exchanges[key][microbatch].stream_rows)
            for key, boundary in self._boundaries.items()
        }
        return self._language_batch(samples, rows)

    def _encoder_batch(
        self, name: str, module: VitModule, samples: list[Sample]
    ) -> EncoderBatch | None:
        parallel = module.parallel
        align = (parallel.tp if parallel.sequence_parallel else 1) * module.projector.merge
        packed = pack_images(samples, name, module.model.patch_size, align)
        if packed is None:
            return None
        return EncoderBatch(
            torch.from_numpy(packed.patches_PX).to(self._device),
            self._tensor(packed.rows_P),
            self._tensor(packed.columns_P),
            self._packing(packed.lengths),
        )

    def _language_batch(
        self, samples: list[Sample], rows: Mapping[str, Tensor]
    ) -> LanguageBatch | None:
        parallel = self._job.language.parallel
        packed = pack_text(samples, parallel.tp if parallel.sequence_parallel else 1)
        if packed is None:
            return None
        return LanguageBatch(
            self._tensor(packed.token_ids_T)[None],
            self._tensor(packed.labels_T)[None],
            self._packing(packed.lengths),
            rows,
            packed.answer_starts,
            packed.answer_stops,
        )

    def _tensor(self, values: object) -> Tensor:
        return torch.from_numpy(np.asarray(values, dtype=np.int64)).to(self._device)

    def _packing(self, lengths: tuple[int, ...]) -> PackedSeqParams:
        bounds = torch.tensor([0, *lengths], dtype=torch.int32, device=self._device)
        bounds = bounds.cumsum(0, dtype=torch.int32)
        longest = max(lengths)
        return PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=bounds,
            cu_seqlens_kv=bounds,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
        )
