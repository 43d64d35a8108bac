"""Backward in two parts: gradients of inputs at once, gradients of weights when there is time.

A zero-bubble schedule fills its bubbles with the second part. The matrices of Megatron's
linears wait; every other weight (norms, biases, embeddings, routers) gets its gradient with
the inputs'. Transformer Engine's linears have queues of their own, if they were built with
``delay_wgrad_compute``; Megatron's hooks add what these give to its buffer.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch import Tensor, nn
from torch.distributed import ProcessGroup

Hold = Callable[[Tensor], object]
"""Called with a tensor that waits; what it returns is kept for as long as the tensor."""


@dataclass(frozen=True)
class _Waiting:
    """A matrix's input and the gradient of its output, rows in front, of one microbatch."""

    weight: nn.Parameter
    input: Tensor
    output_grad: Tensor
    held: tuple[object, ...]

    def add_gradient(self) -> None:
        """Add the weight's gradient to Megatron's buffer, as its own backward would."""
        x_TX, grad_TY = (rows.flatten(0, -2) for rows in (self.input, self.output_grad))
        self.weight.main_grad.add_(grad_TY.t().matmul(x_TX))


class WeightGradients:
    """Makes a model's linears put off the gradients of their weights, and catches up later.

    Args:
        model: built, and frozen where it is to be; its linears are changed in place.
        hold: told of every tensor that waits, if anything is.
    """

    def __init__(self, model: nn.Module, hold: Hold | None = None) -> None:
        self._hold = hold
        self._waiting: dict[int, list[_Waiting]] = {}
        self._collecting: list[_Waiting] = []
        self._engine_linears = [part for part in model.modules() if _delays_by_itself(part)]
        for part in model.modules():
            if isinstance(part, ColumnParallelLinear | RowParallelLinear):
                part._forward_impl = partial(_split_linear, part._forward_impl, self._wait)

    @contextlib.contextmanager
    def collect(self, microbatch: int) -> Iterator[None]:
        """Return a context for a microbatch's backward, which is then left without weights'."""
        assert microbatch not in self._waiting, f"microbatch {microbatch} waits already"
        self._collecting = self._waiting[microbatch] = []
        yield
        self._collecting = []

    @torch.no_grad()
    def run(self, microbatch: int) -> None:
        """Add a microbatch's weight gradients; nothing where it had no backward.

        Microbatches come in the order of their backwards: Transformer Engine's queues have no
        names, and sums then equal those of an undivided backward bit by bit.
        """
        if microbatch not in self._waiting:
            return
        oldest = next(iter(self._waiting))
        assert microbatch == oldest, f"weights of {microbatch} before those of {oldest}"
        for waiting in self._waiting.pop(microbatch):
            waiting.add_gradient()
        for linear in self._engine_linears:
            linear.backward_dw()

    def _wait(self, weight: nn.Parameter, x: Tensor, output_grad: Tensor) -> None:
        held = () if self._hold is None else (self._hold(x), self._hold(output_grad))
        self._collecting.append(_Waiting(weight, x, output_grad, held))


@dataclass(frozen=True)
class _Sharing:
    """What a linear does to its input between tp ranks: gather it (sp), or only its gradient."""

    group: ProcessGroup | None
    gathers: bool
    sums_gradient: bool

    def whole(self, x: Tensor) -> Tensor:
        """Return what the matrix is multiplied with: under sp, the rows of all tp ranks."""
        if not self.gathers:
            return x
        return gather_from_sequence_parallel_region(
            x, tensor_parallel_output_grad=True, group=self.group
        )

    def reduce(self, grad: Tensor) -> Tensor:
        """Return this rank's gradient from its part of the whole input's."""
        if self.gathers:
            return reduce_scatter_to_sequence_parallel_region(grad, group=self.group)
        if self.sums_gradient:
            return reduce_from_tensor_model_parallel_region(grad, group=self.group)
        return grad


class _InputGradientOnly(torch.autograd.Function):
    """A linear without bias whose backward hands the weight's part to ``wait``.

    As in Megatron's own, a rank keeps its own rows of the input under sp and gathers them again
    in the backward. Only then do the gathered rows live, until the weight has its gradient.

    Autograd must not see the weight: a hook of Megatron's fires whenever a backward reaches it,
    and demands a gradient. ``anchor`` makes the output require a gradient in its stead.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        anchor: Tensor,
        weight: Tensor,
        sharing: _Sharing,
        wait: Callable[[Tensor, Tensor], None],
    ) -> Tensor:
        del anchor
        ctx.save_for_backward(x, weight)
        ctx.sharing, ctx.wait = sharing, wait
        return sharing.whole(x).matmul(weight.t())

    @staticmethod
    def backward(ctx: Any, output_grad: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        x, weight = ctx.saved_tensors
        ctx.wait(ctx.sharing.whole(x), output_grad)
        grad = ctx.sharing.reduce(output_grad.matmul(weight)) if ctx.needs_input_grad[0] else None
        return grad, None, None, None, None


def _split_linear(
    original: Callable[..., Tensor],
    wait: Callable[[nn.Parameter, Tensor, Tensor], None],
    *,
    input: Tensor,
    weight: nn.Parameter,
    bias: Tensor | None,
    allreduce_dgrad: bool,
    sequence_parallel: bool,
    tp_group: ProcessGroup | None,
    **others: Any,
) -> Tensor:
    """Stand in for ``_forward_impl`` of Megatron's linears; frozen weights take the original."""
    sharing = _Sharing(tp_group, sequence_parallel, allreduce_dgrad)
    if weight.requires_grad:
        anchor = torch.empty(0, device=input.device, requires_grad=True)
        output: Tensor = _InputGradientOnly.apply(
            input, anchor, weight.detach(), sharing, partial(wait, weight)
        )
        return output if bias is None else output + bias
    return original(
        input=input,
        weight=weight,
        bias=bias,
        allreduce_dgrad=allreduce_dgrad,
        sequence_parallel=sequence_parallel,
        tp_group=tp_group,
        **others,
    )


def _delays_by_itself(part: nn.Module) -> bool:
    """Whether this is one of Transformer Engine's linears whose weights train."""
    store = getattr(part, "wgrad_store", None)
    if store is None or not any(p.requires_grad for p in part.parameters(recurse=False)):
        return False
    delays: bool = store.delay_wgrad_compute()
    return delays
