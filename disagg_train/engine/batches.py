"""A module's batches on one rank: samples loaded, packed, and cut to what this rank holds."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from disagg_train.boundary.exchange import Rows
from disagg_train.boundary.layouts import Side, destination_stream, source_stream
from disagg_train.config.modules import TransformerModule
from disagg_train.data.collate import context_positions, pack_inputs, pack_text
from disagg_train.data.source import DataSource, Sample
from disagg_train.data.tokens import InputTokens, Ints, cutter_of
from disagg_train.errors import DataError
from disagg_train.modules.batch import EncoderBatch, LanguageBatch, Packing, cumulative
from disagg_train.modules.custom import CustomBatch
from disagg_train.planner.step_plan import StepPlan
from disagg_train.topology.stream import Stream

Batch = EncoderBatch | CustomBatch | LanguageBatch | None


class BatchMaker(Protocol):
    """Makes the batches of one module on one rank."""

    def make(self, plan: StepPlan, microbatch: int, stream_rows: Mapping[str, Rows]) -> Batch:
        """Return a microbatch's batch, None where this lane has nothing.

        Args:
            plan: of the step.
            microbatch: which one.
            stream_rows: per boundary, rows of this rank's stream that received rows fill.

        Raises:
            DataError: a sample is not what its index says.
        """


class EncoderBatches:
    """Batches of an encoder of a known family.

    Args:
        module: its part of the job.
        side: its ranks.
        rank: this rank among them.
        source: where samples come from.
        device: where batches go.
    """

    def __init__(
        self,
        module: TransformerModule,
        side: Side,
        rank: int,
        source: DataSource,
        device: torch.device,
    ) -> None:
        self._module, self._side, self._source, self._device = module, side, source, device
        self._at, self._cut = side.grid.coordinates(rank), cutter_of(module)

    def make(self, plan: StepPlan, microbatch: int, stream_rows: Mapping[str, Rows]) -> Batch:
        """Return a microbatch's inputs; stages that embed nothing get their packing alone."""
        del stream_rows
        stream = source_stream(plan, self._side, microbatch, self._at["dp"])
        if not stream.num_rows:
            return None
        merge = self._module.projector.merge
        positions_RP = context_positions(stream, merge)
        packing = make_packing(stream, positions_RP, merge, self._device)
        if self._at["pp"] > 0:
            nothing = torch.zeros(0, dtype=torch.int64, device=self._device)
            return EncoderBatch(packing, nothing, nothing, nothing)
        held = plan.held(self._side.module, microbatch, self._at["dp"])
        samples = load_samples(self._source, plan, held)
        inputs = [tokens for sample in samples for tokens in self._tokens(sample)]
        packed = pack_inputs(inputs, self._module.model.values_per_token, merge, stream)
        mine = packed.at(positions_RP[self._at["cp"]])
        return EncoderBatch(
            packing,
            torch.from_numpy(mine.values_PX).to(self._device),
            _tensor(mine.rows_P, self._device),
            _tensor(mine.columns_P, self._device),
            _tensor(mine.inputs_P, self._device),
            mine.grids,
        )

    def _tokens(self, sample: Sample) -> list[InputTokens]:
        name = self._side.module
        try:
            return [self._cut(each) for each in sample.inputs.get(name, ())]
        except DataError as error:
            raise DataError(f"sample {sample.key}, for {name!r}: {error}") from None


class LanguageBatches:
    """The LLM's batches.

    Args:
        side: its ranks.
        rank: this rank among them.
        encoder_of: per boundary, the encoder that feeds it.
        source: where samples come from.
        device: where batches go.
    """

    def __init__(
        self,
        side: Side,
        rank: int,
        encoder_of: Mapping[str, str],
        source: DataSource,
        device: torch.device,
    ) -> None:
        self._side, self._encoder_of = side, encoder_of
        self._source, self._device = source, device
        self._at = side.grid.coordinates(rank)

    def make(self, plan: StepPlan, microbatch: int, stream_rows: Mapping[str, Rows]) -> Batch:
        """Return a microbatch's fused sequences."""
        stream = destination_stream(plan, self._side, microbatch, self._at["dp"])
        if not stream.num_rows:
            return None
        held = plan.held(self._side.module, microbatch, self._at["dp"])
        packed = pack_text(load_samples(self._source, plan, held), stream)
        positions_RT = context_positions(stream)
        mine = positions_RT[self._at["cp"]]
        shape = (1, -1) if self._side.packed else (len(stream.parts), -1)
        rows = {
            encoder: _tensor(stream_rows[boundary], self._device)
            for boundary, encoder in self._encoder_of.items()
            if boundary in stream_rows
        }
        return LanguageBatch(
            token_ids_BS=_tensor(packed.token_ids_T[mine], self._device).view(shape),
            labels_BS=_tensor(packed.labels_T[mine], self._device).view(shape),
            packing=self._packing(stream, positions_RT),
            rows=rows,
            positions_RT=_tensor(positions_RT, self._device),
            answers=packed.answers,
        )

    def _packing(self, stream: Stream, positions_RT: Ints) -> Packing | None:
        return make_packing(stream, positions_RT, 1, self._device) if self._side.packed else None


def load_samples(source: DataSource, plan: StepPlan, held: tuple[int, ...]) -> list[Sample]:
    """Load samples of a plan.

    Raises:
        DataError: a sample cannot be used.
    """
    return [source.load(plan.samples[index].key) for index in held]


def make_packing(stream: Stream, positions_RT: Ints, unit: int, device: torch.device) -> Packing:
    """Return where a packed stream's sequences start and end; its tail is one more sequence.

    Args:
        stream: of tokens.
        positions_RT: positions of each cp rank, in units.
        unit: positions per token.
        device: of the tensors.
    """
    with_tail = zip([*stream.lengths, stream.tail], [*stream.padded, stream.tail], strict=True)
    filled = [(length * unit, room * unit) for length, room in with_tail if room]
    lengths = tuple(length for length, _ in filled)
    padded = tuple(room for _, room in filled)
    bounds, padded_bounds = cumulative(lengths, device), cumulative(padded, device)
    positions = _tensor(positions_RT, device)
    return Packing(
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        cu_seqlens_q_padded=padded_bounds,
        cu_seqlens_kv_padded=padded_bounds,
        max_seqlen_q=max(padded),
        max_seqlen_kv=max(padded),
        lengths=lengths,
        padded=padded,
        positions_RT=positions,
        order_K=positions.flatten().argsort(),
    )


def _tensor(values: object, device: torch.device) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.int64)).to(device)
