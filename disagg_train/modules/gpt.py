"""The LLM: Megatron's GPT over a packed stream in which encoders' rows fill placeholders.

Shapes: T tokens of the stream, B = 1, D width, V vocabulary; under sp a tp rank holds T / tp
rows of the stream between the matrices.
"""

from collections.abc import Mapping

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from torch import Tensor, nn

from disagg_train.config.modules import GptModule
from disagg_train.modules.batch import LanguageBatch
from disagg_train.modules.specs import layer_specs, megatron_config


class LanguageModel(nn.Module):
    """Returns the sum of token losses of a packed stream."""

    def __init__(self, module: GptModule, groups: ProcessGroupCollection) -> None:
        super().__init__()
        self.config = megatron_config(module.model, module.parallel)
        self.tp_group = groups.tp
        self.gpt = GPTModel(
            self.config,
            layer_specs(module, self.config),
            vocab_size=module.model.vocab_size,
            max_sequence_length=0,
            position_embedding_type="rope",
            rotary_base=module.model.rotary_base,
            pg_collection=groups,
        )

    def forward(self, batch: LanguageBatch, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of the stream's token losses, the same on every tp rank.

        Args:
            batch: the stream.
            inputs: per encoder, the rows of this rank, in the order of ``batch.rows``.
        """
        losses_BT = self._run(batch, inputs, labels=batch.labels_BT.clamp(min=0))
        return losses_BT[batch.labels_BT >= 0].sum()

    @torch.no_grad()
    def logits(self, batch: LanguageBatch, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the logits ``[T, V]`` of the whole stream, on every tp rank."""
        logits_BTV = self._run(batch, inputs, labels=None)
        return gather_from_tensor_model_parallel_region(logits_BTV, group=self.tp_group)[0]

    def _run(
        self, batch: LanguageBatch, inputs: Mapping[str, Tensor], labels: Tensor | None
    ) -> Tensor:
        fused_TBD = self.gpt.embedding(batch.token_ids_BT, None)
        for encoder, rows_D in inputs.items():
            at = batch.rows[encoder]
            fused_TBD = fused_TBD.index_put((at, torch.zeros_like(at)), rows_D)
        return self.gpt(
            input_ids=None,
            position_ids=None,
            attention_mask=None,
            decoder_input=fused_TBD,
            labels=labels,
            packed_seq_params=batch.packing,
        )
