"""Is it the same training? Compare a run of a job's layouts with one process."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from disagg_train.config.groups import GroupConfig
from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.config.modules import ParallelConfig

_LOSS_BAR = 1e-5
_GRADIENT_BAR = 1e-5
_NORM_BAR = 1e-4

_PLAIN = {
    "schedule": "1f1b",
    "window": None,
    "balance": "none",
    "deferral_span": 0,
    "deferral_bytes": None,
    "tokens_per_microbatch": None,
}

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Observation:
    """What a run showed.

    Args:
        losses: of every step.
        grad_norms: of every step.
        first_gradients: full gradients of the first step, by full name.
        weights: full weights after the last step, by full name.
    """

    losses: Sequence[float]
    grad_norms: Sequence[float]
    first_gradients: Tensors
    weights: Tensors


@dataclass(frozen=True)
class Parity:
    """The largest relative differences between a run and its reference."""

    ok: bool
    steps: int
    max_rel_grad_first_step: float
    max_rel_loss: float
    max_rel_grad_norm: float
    max_rel_weight: float

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return asdict(self)


def one_process(job: JobConfig) -> JobConfig:
    """Return the same training on a single rank, in the plainest schedule."""
    alone = {"group": LANGUAGE, "parallel": ParallelConfig(), "recompute": "none"}
    changed = job.model_copy(
        update={
            "groups": {LANGUAGE: GroupConfig(ranks=1)},
            "modules": {name: m.model_copy(update=alone) for name, m in job.modules.items()},
            "train": job.train.model_copy(update=_PLAIN),
            "fallback": None,
        }
    )
    return JobConfig.model_validate(changed.model_dump())


def compare(found: Observation, reference: Observation) -> Parity:
    """Return how far a run is from its reference, and whether fp32 explains it."""
    loss = _max_relative(found.losses, reference.losses)
    norm = _max_relative(found.grad_norms, reference.grad_norms)
    gradient = max_relative_gradient(found.first_gradients, reference.first_gradients)
    weight = max(
        _distance(found.weights[name], tensor) / max(_norm(tensor), 1e-12)
        for name, tensor in reference.weights.items()
    )
    ok = gradient <= _GRADIENT_BAR and loss <= _LOSS_BAR and norm <= _NORM_BAR
    return Parity(ok, len(reference.losses), gradient, loss, norm, weight)


def max_relative_gradient(found: Tensors, reference: Tensors) -> float:
    """Return the worst parameter's relative difference.

    The norm of the difference is taken over the reference's norm, but at least over 1e-3 of
    the typical one: some gradients, such as a key bias's, are truly zero.
    """
    if set(found) != set(reference):
        raise ValueError(f"different parameters: {sorted(set(found) ^ set(reference))[:6]}")
    total = math.sqrt(sum(_norm(tensor) ** 2 for tensor in reference.values()))
    floor = 1e-3 * total / math.sqrt(max(len(reference), 1))
    return max(
        (_distance(found[name], g) / max(_norm(g), floor) for name, g in reference.items()),
        default=0.0,
    )


def _max_relative(found: Sequence[float], reference: Sequence[float]) -> float:
    pairs = zip(found, reference, strict=True)
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in pairs)


def _norm(tensor: NDArray[Any]) -> float:
    return float(np.linalg.norm(tensor.astype(np.float64)))


def _distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    return _norm(a.astype(np.float64) - b.astype(np.float64))
