"""The LLM, or a pipeline stage of it: Megatron's GPT, with encoders' rows at placeholders.

Shapes: S positions of this cp rank per sequence, B sequences (1 where packed), D width,
V vocabulary. Under sp a tp rank holds S / tp rows between the matrices. Rows that enter or
leave a stage are ``[B * S, D]``, sequence by sequence.
"""

import contextlib
from collections.abc import Mapping
from functools import lru_cache, partial

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from megatron.core.transformer.moe.moe_layer import MoELayer
from torch import Tensor, nn

from disagg_train.config.job import Precision
from disagg_train.config.modules import GptModule
from disagg_train.modules.batch import PREVIOUS_STAGE, LanguageBatch
from disagg_train.modules.cpu import cuda_means_cpu
from disagg_train.modules.specs import layer_specs, megatron_config

_MOST_LENGTHS = 32
"""Of which rotary positions are kept."""


class LanguageModel(nn.Module):
    """Returns the sum of token losses; a stage that others follow returns its rows."""

    def __init__(
        self,
        module: GptModule,
        groups: ProcessGroupCollection,
        vp_stage: int = 0,
        split_backward: bool = False,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        self.config = megatron_config(
            module.model, module.parallel, module.recompute, split_backward, precision
        )
        self.groups = groups
        vpp = module.parallel.vpp
        self.is_first = groups.pp.rank() == 0 and vp_stage == 0
        self.is_last = groups.pp.rank() == groups.pp.size() - 1 and vp_stage == vpp - 1
        self.gpt = GPTModel(
            self.config,
            layer_specs(module, self.config),
            vocab_size=module.model.vocab_size,
            max_sequence_length=0,
            pre_process=self.is_first,
            post_process=self.is_last,
            share_embeddings_and_output_weights=module.model.tie_embeddings,
            position_embedding_type="rope",
            rotary_base=module.model.rotary_base,
            pg_collection=groups,
            vp_stage=vp_stage if vpp > 1 else None,
        )
        rotary = self.gpt.rotary_pos_emb
        _cache_by_model(rotary)
        if module.model.rope_scaling is not None:
            stretched = module.model.rope_scaling.model_dump()
            rotary.inv_freq = rotary._apply_scaling(rotary.inv_freq, **stretched)

    def forward(self, batch: LanguageBatch, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of this cp rank's token losses, the same on every tp rank.

        Args:
            batch: the sequences.
            inputs: per encoder, the rows of this rank in the order of ``batch.rows``; on
                later stages only those of the stage before.

        Returns:
            A scalar, or ``[B * S, D]`` where another stage follows.
        """
        labels_BS = batch.labels_BS.clamp(min=0) if self.is_last else None
        found = self._run(batch, inputs, labels_BS)
        if not self.is_last:
            return found.transpose(0, 1).flatten(0, 1)
        return found[batch.labels_BS >= 0].sum()

    @torch.no_grad()
    def logits(self, batch: LanguageBatch, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the logits ``[B * S, V]`` of this cp rank, on every tp rank of the last stage.

        A stage that others follow returns its rows.
        """
        found_BSV = self._run(batch, inputs, labels_BS=None)
        if not self.is_last:
            return found_BSV.transpose(0, 1).flatten(0, 1)
        whole_BSV = gather_from_tensor_model_parallel_region(found_BSV, group=self.groups.tp)
        return whole_BSV.flatten(0, 1)

    def empty_rows(self, batch: LanguageBatch) -> Tensor:
        """Return memory for the rows that another stage hands to this rank."""
        rows = batch.token_ids_BS.numel()
        if self.config.sequence_parallel:
            rows //= self.groups.tp.size()
        weight = next(self.parameters())
        return weight.new_empty(rows, self.config.hidden_size)

    def close(self) -> None:
        """Let go of the last forward's graph, of which experts keep a tensor.

        The hooks in it hold the model, by references that Python's collector does not see: no
        model with experts would ever be freed.
        """
        for layer in self.modules():
            if isinstance(layer, MoELayer):
                layer.token_dispatcher = None

    def _run(
        self, batch: LanguageBatch, inputs: Mapping[str, Tensor], labels_BS: Tensor | None
    ) -> Tensor:
        embedded_SBD = self._embed(batch, inputs) if self.is_first else None
        if not self.is_first:
            rows_TD = inputs[PREVIOUS_STAGE]
            per_sequence_BSD = rows_TD.view(batch.num_sequences, -1, rows_TD.shape[-1])
            self.gpt.set_input_tensor(per_sequence_BSD.transpose(0, 1))
        with self._rotary_positions(batch):
            found: Tensor = self.gpt(
                input_ids=None,
                position_ids=None,
                attention_mask=None,
                decoder_input=embedded_SBD,
                labels=labels_BS,
                packed_seq_params=batch.packing,
            )
        return found

    def _embed(self, batch: LanguageBatch, inputs: Mapping[str, Tensor]) -> Tensor:
        fused_SBD: Tensor = self.gpt.embedding(batch.token_ids_BS, None)
        for encoder, rows_TD in inputs.items():
            at = batch.rows[encoder]
            sequence, position = at // len(fused_SBD), at % len(fused_SBD)
            fused_SBD = fused_SBD.index_put((position, sequence), rows_TD)
        if torch.is_grad_enabled() and not fused_SBD.requires_grad and self._shares_backward():
            fused_SBD.requires_grad_()
        return fused_SBD

    def _shares_backward(self) -> bool:
        """Whether other ranks wait for this one's backward, with or without rows to give.

        A frozen LLM still runs backward for the encoders' sake; all ranks of a lane must.
        """
        groups = self.groups
        return any(group.size() > 1 for group in (groups.tp, groups.cp, groups.ep))

    def _rotary_positions(self, batch: LanguageBatch) -> contextlib.AbstractContextManager[object]:
        """Megatron cuts padded positions over cp on ``cuda``, whatever the device."""
        cut = batch.packing is None and self.groups.cp.size() > 1
        return cuda_means_cpu() if cut else contextlib.nullcontext()


def _cache_by_model(rotary: nn.Module) -> None:
    """Give a model its own cache of rotary positions.

    Megatron's is the class's: it would keep the process groups of models that are gone, and
    with them threads that never rest.
    """
    uncached = partial(type(rotary).forward.__wrapped__, rotary)
    rotary.forward = lru_cache(_MOST_LENGTHS)(uncached)
