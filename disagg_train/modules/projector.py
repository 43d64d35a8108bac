"""From an encoder's width to the LLM's."""

from megatron.core.models.vision.multimodal_projector import MultimodalProjector
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import nn

from disagg_train.config.job import Precision
from disagg_train.config.models import EncoderConfig, GptConfig
from disagg_train.config.modules import EncoderModule
from disagg_train.modules.specs import megatron_config, mlp_submodules


class LinearProjector(nn.Linear):
    """One matrix, the same on every tp rank.

    Under sp each tp rank projects its own tokens only, so the weights carry
    ``sequence_parallel`` and Megatron sums their gradients over tp.
    """

    def __init__(self, width: int, out_width: int, sequence_parallel: bool) -> None:
        super().__init__(width, out_width)
        for parameter in self.parameters():
            parameter.sequence_parallel = sequence_parallel


def make_projector(
    module: EncoderModule,
    model: EncoderConfig,
    language: GptConfig,
    groups: ProcessGroupCollection,
    precision: Precision = "fp32",
) -> nn.Module:
    """Return a projector ``[T, 1, width * merge]`` -> ``[T, 1, D of the LLM]``.

    Args:
        module: says which kind, and how many tokens are joined.
        model: sizes of the encoder.
        language: sizes of the LLM.
        groups: the module's process groups.
        precision: of weights and activations.
    """
    joined, parallel = model.hidden_size * module.projector.merge, module.parallel
    if module.projector.kind == "linear":
        return LinearProjector(joined, language.hidden_size, parallel.sequence_parallel)
    width = {"hidden_size": language.hidden_size, "ffn_hidden_size": language.hidden_size}
    sizes = model.model_copy(update=width | {"activation": "gelu"})
    config = megatron_config(sizes, parallel, precision=precision)
    return MultimodalProjector(config, mlp_submodules(), "mlp", joined, tp_group=groups.tp)
