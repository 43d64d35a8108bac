"""An encoder of a known family with its projector, or a pipeline stage of it.

Shapes: P tokens of this cp rank, D width, T = P / merge tokens of the LLM. Under sp a tp rank
holds P / tp rows between the matrices.
"""

from collections.abc import Mapping

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import scatter_to_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock
from torch import Tensor

from disagg_train.config.job import Precision
from disagg_train.config.models import GptConfig
from disagg_train.config.modules import TransformerModule
from disagg_train.modules.batch import PREVIOUS_STAGE, EncoderBatch
from disagg_train.modules.embeddings import make_embedding
from disagg_train.modules.projector import make_projector
from disagg_train.modules.specs import layer_specs, megatron_config


class Encoder(MegatronModule):
    """Inputs of any sizes in one packed sequence -> rows of the LLM's width.

    Every tp rank embeds all tokens of its cp rank; under sp they are then cut over tp, so a
    rank returns its own rows, else all of them. P is a multiple of tp * merge.
    """

    def __init__(
        self,
        module: TransformerModule,
        language: GptConfig,
        groups: ProcessGroupCollection,
        split_backward: bool = False,
        precision: Precision = "fp32",
    ) -> None:
        config = megatron_config(
            module.model, module.parallel, module.recompute, split_backward, precision
        )
        super().__init__(config=config)
        self.pg_collection, self.merge = groups, module.projector.merge
        self.is_first = groups.pp.rank() == 0
        self.is_last = groups.pp.rank() == groups.pp.size() - 1
        self.embedding = make_embedding(module.model) if self.is_first else None
        self.encoder = TransformerBlock(
            config,
            layer_specs(module, config),
            post_layer_norm=module.model.norms_output,
            pre_process=self.is_first,
            post_process=self.is_last,
            pg_collection=groups,
        )
        self.projector = (
            make_projector(module, module.model, language, groups, precision)
            if self.is_last
            else None
        )

    def forward(self, batch: EncoderBatch, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return this rank's rows.

        Args:
            batch: the inputs.
            inputs: on later stages, the rows of the stage before.

        Returns:
            The projector's ``[T or T / tp, D of the LLM]``, or the ``[P or P / tp, D]`` of a
            stage that others follow.
        """
        x_PD = self.features(batch, inputs)
        if self.projector is None:
            return x_PD
        x_TBD = x_PD.reshape(x_PD.shape[0] // self.merge, 1, -1)
        rows_TD: Tensor = self.projector(x_TBD).squeeze(1)
        return rows_TD

    def features(self, batch: EncoderBatch, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the last layer's rows ``[P or P / tp, D]``, before the projector."""
        if self.embedding is None:
            self.encoder.set_input_tensor(inputs[PREVIOUS_STAGE].unsqueeze(1))
        x_PBD = None if self.embedding is None else self._split(self.embedding(batch))
        x_PBD = self.encoder(x_PBD, attention_mask=None, packed_seq_params=batch.packing)
        rows_PD: Tensor = x_PBD.squeeze(1)
        return rows_PD

    def _split(self, x_PD: Tensor) -> Tensor:
        x_PBD = x_PD.unsqueeze(1)
        if not self.config.sequence_parallel:
            return x_PBD
        return scatter_to_sequence_parallel_region(x_PBD, group=self.pg_collection.tp)

    def set_input_tensor(self, input_tensor: Tensor) -> None:
        """Megatron's schedules call this; ours hand rows over as ``inputs``."""
        self.encoder.set_input_tensor(input_tensor)
