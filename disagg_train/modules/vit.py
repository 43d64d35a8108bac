"""A vision transformer with its projector. Shapes: P patches, D width, T = P / merge tokens."""

from collections.abc import Mapping
from typing import Any

from megatron.core.models.vision.multimodal_projector import MultimodalProjector
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import scatter_to_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock
from torch import Tensor, nn

from disagg_train.config.modules import GptConfig, VitModule
from disagg_train.modules.batch import EncoderBatch
from disagg_train.modules.specs import layer_specs, megatron_config, mlp_submodules


class VisionTransformer(MegatronModule):
    """Images of any sizes in one packed sequence -> rows of the LLM's width.

    Every tp rank embeds all patches; under sp they are then cut over tp, so a rank returns
    its own rows, else all of them. The number of patches is a multiple of tp * merge.
    """

    def __init__(
        self, module: VitModule, language: GptConfig, groups: ProcessGroupCollection
    ) -> None:
        config = megatron_config(module.model, module.parallel)
        super().__init__(config=config)
        self.pg_collection, self.merge = groups, module.projector.merge
        model = module.model
        pixels = model.patch_size**2 * model.num_channels
        self.patch_embedding = nn.Linear(pixels, model.hidden_size)
        self.row_embedding = nn.Embedding(model.max_patches_per_side, model.hidden_size)
        self.column_embedding = nn.Embedding(model.max_patches_per_side, model.hidden_size)
        self.encoder = TransformerBlock(config, layer_specs(module, config), pg_collection=groups)
        self.projector = _projector(module, language, groups)

    def forward(self, batch: EncoderBatch, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return this rank's projector rows, ``[T or T / tp, D of the LLM]``."""
        del inputs
        x_PD = self.patch_embedding(batch.patches_PX)
        x_PD = x_PD + self.row_embedding(batch.rows_P) + self.column_embedding(batch.columns_P)
        x_PBD = x_PD.unsqueeze(1)
        if self.config.sequence_parallel:
            x_PBD = scatter_to_sequence_parallel_region(x_PBD, group=self.pg_collection.tp)
        x_PBD = self.encoder(x_PBD, attention_mask=None, packed_seq_params=batch.packing)
        x_TBD = x_PBD.reshape(x_PBD.shape[0] // self.merge, 1, -1)
        return self.projector(x_TBD).squeeze(1)

    def set_input_tensor(self, input_tensor: Any) -> None:
        """Take a pipeline stage's input; an encoder of one stage has none."""
        del input_tensor


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
