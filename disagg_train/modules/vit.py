"""A vision transformer with its projector, or a pipeline stage of it.

Shapes: P patches of this cp rank, D width, T = P / merge tokens. Under sp a tp rank holds
P / tp rows between the matrices.
"""

from collections.abc import Mapping

from megatron.core.models.vision.multimodal_projector import MultimodalProjector
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import scatter_to_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock
from torch import Tensor, nn

from disagg_train.config.modules import GptConfig, VitConfig, VitModule
from disagg_train.modules.batch import PREVIOUS_STAGE, EncoderBatch
from disagg_train.modules.specs import layer_specs, megatron_config, mlp_submodules


class PatchEmbedding(nn.Module):
    """Patches and where they sit in their image -> rows of the encoder's width."""

    def __init__(self, model: VitConfig) -> None:
        super().__init__()
        pixels = model.patch_size**2 * model.num_channels
        self.patch = nn.Linear(pixels, model.hidden_size)
        self.row = nn.Embedding(model.max_patches_per_side, model.hidden_size)
        self.column = nn.Embedding(model.max_patches_per_side, model.hidden_size)

    def forward(self, batch: EncoderBatch) -> Tensor:
        """Return ``[P, D]``."""
        x_PD: Tensor = self.patch(batch.patches_PX)
        return x_PD + self.row(batch.rows_P) + self.column(batch.columns_P)


class VisionTransformer(MegatronModule):
    """Images of any sizes in one packed sequence -> rows of the LLM's width.

    Every tp rank embeds all patches of its cp rank; under sp they are then cut over tp, so a
    rank returns its own rows, else all of them. P is a multiple of tp * merge.
    """

    def __init__(
        self,
        module: VitModule,
        language: GptConfig,
        groups: ProcessGroupCollection,
        split_backward: bool = False,
    ) -> None:
        config = megatron_config(module.model, module.parallel, module.recompute, split_backward)
        super().__init__(config=config)
        self.pg_collection, self.merge = groups, module.projector.merge
        self.is_first = groups.pp.rank() == 0
        self.is_last = groups.pp.rank() == groups.pp.size() - 1
        self.embedding = PatchEmbedding(module.model) if self.is_first else None
        self.encoder = TransformerBlock(
            config,
            layer_specs(module, config),
            pre_process=self.is_first,
            post_process=self.is_last,
            pg_collection=groups,
        )
        self.projector = _projector(module, language, groups) if self.is_last else None

    def forward(self, batch: EncoderBatch, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return this rank's rows.

        Args:
            batch: the images.
            inputs: on later stages, the rows of the stage before.

        Returns:
            The projector's ``[T or T / tp, D of the LLM]``, or the ``[P or P / tp, D]`` of a
            stage that others follow.
        """
        if self.embedding is None:
            self.encoder.set_input_tensor(inputs[PREVIOUS_STAGE].unsqueeze(1))
        x_PBD = None if self.embedding is None else self._split(self.embedding(batch))
        x_PBD = self.encoder(x_PBD, attention_mask=None, packed_seq_params=batch.packing)
        if self.projector is None:
            return x_PBD.squeeze(1)
        x_TBD = x_PBD.reshape(x_PBD.shape[0] // self.merge, 1, -1)
        return self.projector(x_TBD).squeeze(1)

    def _split(self, x_PD: Tensor) -> Tensor:
        x_PBD = x_PD.unsqueeze(1)
        if not self.config.sequence_parallel:
            return x_PBD
        return scatter_to_sequence_parallel_region(x_PBD, group=self.pg_collection.tp)

    def set_input_tensor(self, input_tensor: Tensor) -> None:
        """Megatron's schedules call this; ours hand rows over as ``inputs``."""
        self.encoder.set_input_tensor(input_tensor)


class LinearProjector(nn.Linear):
    """One matrix, the same on every tp rank.

    Under sp each tp rank projects its own tokens only, so the weights carry
    ``sequence_parallel`` and Megatron sums their gradients over tp.
    """

    def __init__(self, width: int, out_width: int, sequence_parallel: bool) -> None:
        super().__init__(width, out_width)
        for parameter in self.parameters():
            parameter.sequence_parallel = sequence_parallel


def _projector(module: VitModule, language: GptConfig, groups: ProcessGroupCollection) -> nn.Module:
    width = module.model.hidden_size * module.projector.merge
    if module.projector.kind == "linear":
        return LinearProjector(width, language.hidden_size, module.parallel.sequence_parallel)
    sizes = {"hidden_size": language.hidden_size, "ffn_hidden_size": width}
    config = megatron_config(module.model.model_copy(update=sizes), module.parallel)
    return MultimodalProjector(config, mlp_submodules(), "mlp", width, tp_group=groups.tp)
