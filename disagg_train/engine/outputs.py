"""What a stage gave: rows until all who need them have them, gradients until they are whole.

Where the LLM may put samples off, one of its microbatches draws on several of the encoder's:
a message is read from their outputs, one after the other, and its gradients are spread over
them again.
"""

import torch
from torch import Tensor

from disagg_train.schedule.graph import Reach


class Outputs:
    """One stage's outputs in one step.

    Args:
        reach: how late the next stage may take a sample.
        num_microbatches: of the step.
    """

    def __init__(self, reach: Reach, num_microbatches: int) -> None:
        self._reach, self._last = reach, num_microbatches - 1
        self._rows: dict[int, Tensor] = {}
        self._num_rows: dict[int, int] = {}
        self._grads: dict[int, Tensor] = {}

    def keep(self, microbatch: int, rows_TD: Tensor) -> None:
        """Keep a microbatch's rows until its last consumer has them."""
        self._rows[microbatch], self._num_rows[microbatch] = rows_TD.detach(), len(rows_TD)

    def message(self, microbatch: int) -> Tensor:
        """Return the rows that a microbatch of the next stage draws on."""
        parts = [self._rows[number] for number in self._reach.drawn_on(microbatch)]
        for number in tuple(self._rows):
            if min(self._reach.consumers(number)[-1], self._last) <= microbatch:
                del self._rows[number]
        return torch.cat(parts) if self._reach.span else parts[0]

    def add_gradient(self, microbatch: int, grad_TD: Tensor) -> None:
        """Add the gradient of ``message(microbatch)``; without a span it is kept as it is."""
        if not self._reach.span:
            self._grads[microbatch] = grad_TD
            return
        sources = self._reach.drawn_on(microbatch)
        parts = grad_TD.split([self._num_rows[number] for number in sources])
        for number, part_TD in zip(sources, parts, strict=True):
            if number in self._grads:
                self._grads[number] += part_TD
            else:
                self._grads[number] = part_TD.clone()

    def take_gradient(self, microbatch: int) -> Tensor | None:
        """Return the gradient of a microbatch's rows; None where nothing came back."""
        return self._grads.pop(microbatch, None)
