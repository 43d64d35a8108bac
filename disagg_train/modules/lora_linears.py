"""Low-rank additions to Megatron's linears, under tensor and sequence parallelism.

Of a linear that is cut by its outputs (qkv, fc1) B is cut like the matrix and A is whole; of one
that is cut by its inputs (proj, fc2) A is cut and B is whole. What passes between the two is
``[..., rank]``, so an addition moves ``rank`` values per token where its linear moves D. Whole
weights see this rank's own tokens only under sp, and then Megatron sums their gradients over tp.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn
from torch.nn.functional import linear as multiply

from disagg_train.config.modules import LoraConfig
from disagg_train.errors import ConfigError
from disagg_train.modules.lora import LORA_A, LORA_B

_LINEARS = (ColumnParallelLinear, RowParallelLinear)


def add_lora(name: str, model: nn.Module, lora: LoraConfig) -> None:
    """Give the linears of a model's layers their additions, not yet drawn.

    Routed experts get none, and neither does a projector: it is trained itself.

    Args:
        name: of the module, for the error.
        model: built, and not yet wrapped; its linears are changed in place.
        lora: which linears, and how.

    Raises:
        ConfigError: no linear is to get one.
    """
    linears = list(_targets(model, lora))
    if not linears:
        raise ConfigError(
            f"modules.{name}.lora: none of the linears {list(lora.targets)} is in the layers of "
            f"this model (Megatron's; experts take no additions); change lora.targets or remove "
            f"modules.{name}.lora"
        )
    for linear in linears:
        _add_weights(linear, lora.rank)
        linear.register_forward_hook(partial(_add_rows, lora.alpha / lora.rank))


def _targets(model: nn.Module, lora: LoraConfig) -> Iterator[nn.Module]:
    layers = [part for part in model.modules() if isinstance(part, TransformerLayer)]
    for layer in layers:
        for path, part in layer.named_modules():
            wanted = path.rpartition(".")[2] in lora.targets
            if wanted and isinstance(part, _LINEARS) and not part.is_expert:
                yield part


def _add_weights(linear: nn.Module, rank: int) -> None:
    weight: nn.Parameter = linear.weight
    a_RI = nn.Parameter(weight.new_empty(rank, weight.shape[1]))
    b_OR = nn.Parameter(weight.new_empty(weight.shape[0], rank))
    linear.register_parameter(LORA_A, a_RI)
    linear.register_parameter(LORA_B, b_OR)
    is_column = isinstance(linear, ColumnParallelLinear)
    cut, whole = (b_OR, a_RI) if is_column else (a_RI, b_OR)
    set_tensor_model_parallel_attributes(
        cut, is_parallel=True, dim=weight.partition_dim, stride=weight.partition_stride
    )
    whole.sequence_parallel = linear.sequence_parallel


def _add_rows(
    scale: float, linear: nn.Module, args: tuple[Any, ...], found: tuple[Tensor, Any]
) -> tuple[Tensor, Any]:
    """Add to a linear's output; Megatron's linears return their bias beside it."""
    output, bias = found
    is_column = isinstance(linear, ColumnParallelLinear)
    share = _share_of_column if is_column else _share_of_row
    between = share(linear, multiply(args[0], linear.lora_A))
    return output + scale * multiply(between, linear.lora_B), bias


def _share_of_column(linear: ColumnParallelLinear, mine: Tensor) -> Tensor:
    """Return what B is multiplied with: every tp rank has the rows, or under sp its own."""
    if linear.sequence_parallel:
        return gather_from_sequence_parallel_region(
            mine, tensor_parallel_output_grad=True, group=linear.tp_group
        )
    return copy_to_tensor_model_parallel_region(mine, group=linear.tp_group)


def _share_of_row(linear: RowParallelLinear, mine: Tensor) -> Tensor:
    """Return what B is multiplied with: the sum over tp, or under sp this rank's rows of it."""
    if linear.sequence_parallel:
        return reduce_scatter_to_sequence_parallel_region(mine, group=linear.tp_group)
    return reduce_from_tensor_model_parallel_region(mine, group=linear.tp_group)
