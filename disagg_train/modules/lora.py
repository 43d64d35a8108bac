"""Low-rank additions by name: what they are called, and how they go into the matrices for good.

A linear's addition is two weights beside its own: ``<linear>.lora_A`` ``[rank, in]`` and
``<linear>.lora_B`` ``[out, rank]``. It adds ``alpha / rank * B A`` to ``<linear>.weight``.
"""

from collections.abc import Mapping
from typing import Any

from disagg_train.config.modules import LoraConfig

LORA_A, LORA_B = "lora_A", "lora_B"


def is_addition(name: str) -> bool:
    """Whether a weight is a part of a low-rank addition, by its path or full name."""
    return name.rpartition(".")[2] in (LORA_A, LORA_B)


def merged(weights: Mapping[str, Any], lora: LoraConfig) -> dict[str, Any]:
    """Return a module's weights with the additions put into the matrices.

    Args:
        weights: full tensors (of torch or NumPy) by full name, additions among them.
        lora: what they were trained with.

    Returns:
        Full tensors by full name, without additions; untouched ones are the same objects.
    """
    found = {name: weight for name, weight in weights.items() if not is_addition(name)}
    for name, a_RI in weights.items():
        linear, _, last = name.rpartition(".")
        if last == LORA_A:
            b_OR, matrix = weights[f"{linear}.{LORA_B}"], f"{linear}.weight"
            found[matrix] = found[matrix] + lora.alpha / lora.rank * (b_OR @ a_RI)
    return found
