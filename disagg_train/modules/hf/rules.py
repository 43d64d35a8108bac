"""How a parameter of ours is made of the tensors of a Hugging Face checkpoint, and back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """One parameter's.

    Args:
        names: of the checkpoint's tensors, without any prefix that says which part of a larger
            model they are.
        join: these tensors, in the order of their names -> our full tensor.
        split: our full tensor -> these tensors; the inverse.
    """

    names: tuple[str, ...]
    join: Callable[[Sequence[Tensor]], Tensor]
    split: Callable[[Tensor], Sequence[Tensor]]


Naming = Callable[[str], Rule | None]
"""Path of a parameter in our module (layers and experts counted over the whole model) -> its rule;
None where the checkpoint has no such tensor, as for a projector."""


def same(name: str) -> Rule:
    """Return the rule of a parameter that the checkpoint holds as it is."""
    return Rule((name,), lambda tensors: tensors[0], lambda full: [full])
