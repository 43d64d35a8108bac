"""Weights by name: the same full tensors on every layout, cut into each rank's shard.

A parameter's full name is its module's name and its path in the model, with layers and
experts counted over the whole model; a copy of a tied matrix goes by the name of the matrix.
(seed, full name) alone decides its initial values.
"""

import hashlib
import math
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn

from disagg_train.modules.lora import LORA_B


def named_weights(module: str, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (full name, parameter) of every weight of a module's local model."""
    numbers = _global_numbers(model)
    for path, parameter in model.named_parameters():
        parts = _path_of_original(path, parameter).split(".")
        paths = [".".join(parts[: end + 1]) for end in range(len(parts))]
        full = (numbers.get(path, part) for path, part in zip(paths, parts, strict=True))
        yield ".".join([module, *full]), parameter


def _path_of_original(path: str, parameter: nn.Parameter) -> str:
    """Return the embedding's path for the last stage's copy of it, any other path as it is."""
    if is_tied_copy(parameter):
        return path.replace("output_layer", "embedding.word_embeddings")
    return path


def _global_numbers(model: nn.Module) -> dict[str, str]:
    """Return the number over the whole model of every layer and expert, by its local path."""
    numbers = {}
    for path, part in model.named_modules():
        if isinstance(part, TransformerLayer):
            numbers[path] = str(part.layer_number - 1)
        if isinstance(part, MoELayer):
            for local, number in enumerate(part.local_expert_indices):
                numbers[f"{path}.experts.local_experts.{local}"] = str(number)
    return numbers


def is_expert_parallel(parameter: nn.Parameter) -> bool:
    """Whether the parameter is of an expert that some lanes hold and others do not."""
    return not getattr(parameter, "allreduce", True)


def is_tied(parameter: nn.Parameter) -> bool:
    """Whether the first and the last stage hold a copy each: an embedding that gives logits."""
    return bool(getattr(parameter, "shared_embedding", False))


def is_tied_copy(parameter: nn.Parameter) -> bool:
    """Whether the parameter is the last stage's copy; the first stage's is the one that counts."""
    return bool(getattr(parameter, "shared", False))


def is_sharded(parameter: nn.Parameter) -> bool:
    """Whether tp ranks hold different parts of the parameter."""
    return bool(getattr(parameter, "tensor_model_parallel", False))


def full_shape(parameter: nn.Parameter, tp: int) -> list[int]:
    """Return the shape of the whole parameter."""
    shape = list(parameter.shape)
    if is_sharded(parameter):
        shape[parameter.partition_dim] *= tp
    return shape


def draw(seed: int, name: str, shape: list[int]) -> Tensor:
    """Return the initial values of the full parameter, drawn on the CPU in fp32.

    Biases are zero, norm weights one, matrices normal with deviation 1 / sqrt(values of a
    row): the fan-in of a linear or a convolution, the width of an embedding. Residual streams
    are normalised before every use, so their growth with depth does no harm. One matrix of a
    low-rank addition is zero, so that training starts from the model without it.
    """
    if name.endswith(("bias", LORA_B)):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))


def shard(full: Tensor, parameter: nn.Parameter, tp_rank: int, tp: int) -> Tensor:
    """Return the part of a full tensor that a tp rank holds.

    With a partition stride (SwiGLU's first matrix has 2) a rank holds one piece of each of
    the stride's blocks.
    """
    if tp == 1 or not is_sharded(parameter):
        return full
    dim, stride = parameter.partition_dim, parameter.partition_stride
    pieces = torch.split(full, full.shape[dim] // tp // stride, dim=dim)
    return torch.cat(pieces[tp_rank::tp], dim=dim)


def unshard(parts: list[Tensor], parameter: nn.Parameter) -> Tensor:
    """Return the full tensor from all tp ranks' parts; the inverse of ``shard``."""
    if len(parts) == 1 or not is_sharded(parameter):
        return parts[0]
    dim, stride = parameter.partition_dim, parameter.partition_stride
    blocks = [torch.chunk(part, stride, dim=dim) for part in parts]
    return torch.cat([part[i] for i in range(stride) for part in blocks], dim=dim)


def initialize(module: str, model: nn.Module, seed: int, group: dist.ProcessGroup) -> None:
    """Fill a local model with its shards of the weights that (seed, name) decide."""
    fill(module, model, group, lambda name, shape: draw(seed, name, shape))


@torch.no_grad()
def fill(
    module: str,
    model: nn.Module,
    group: dist.ProcessGroup,
    full_of: Callable[[str, list[int]], Tensor],
) -> None:
    """Fill a local model with its shards of full tensors, of which it holds one at a time.

    Args:
        module: name of the module.
        model: the local model; its parameters keep their precision.
        group: the tp ranks that share it.
        full_of: full name and shape of a parameter -> its values.
    """
    tp_rank, tp = group.rank(), group.size()
    for name, parameter in named_weights(module, model):
        full = full_of(name, full_shape(parameter, tp))
        parameter.copy_(shard(full, parameter, tp_rank, tp))
        del full  # before the next is made


def gather_full(tensor: Tensor, parameter: nn.Parameter, group: dist.ProcessGroup) -> Tensor:
    """Return the full tensor on every tp rank, from this rank's part of it."""
    if group.size() == 1 or not is_sharded(parameter):
        return tensor.detach().clone()
    parts = [torch.empty_like(tensor) for _ in range(group.size())]
    dist.all_gather(parts, tensor.detach().contiguous(), group=group)
    return unshard(parts, parameter)
