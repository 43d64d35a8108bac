"""One training step on warm actors: what it started from and what came out."""

import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from disagg_train.driver.loop import collect
from disagg_train.planner.step_plan import StepPlan

if TYPE_CHECKING:
    from actors.group import ActorGroup

DEADLINE_S = 300.0


@dataclass(frozen=True)
class EngineStep:
    """One step of the engine: the weights it started from, and what came out."""

    plan: StepPlan
    weights: Mapping[str, NDArray[Any]]
    loss: float
    grad_norm: float
    gradients: Mapping[str, NDArray[Any]]

    def plain_weights(self) -> dict[str, Tensor]:
        """Return the weights in float64, so that only the engine's rounding is seen."""
        return {
            name: torch.tensor(weight, dtype=torch.float64, requires_grad=True)
            for name, weight in self.weights.items()
        }


def engine_step(groups: "Sequence[ActorGroup]", plan: StepPlan) -> EngineStep:
    weights = merged([group.weights() for group in groups])
    report = collect([group.train(plan, None) for group in groups], DEADLINE_S)[0]
    gradients = merged([group.gradients() for group in groups])
    loss = report.loss_sum / plan.num_target_tokens
    return EngineStep(plan, weights, loss, report.grad_norm, gradients)


def merged(
    pending: "Sequence[Future[list[dict[str, NDArray[Any]]]]]",
) -> dict[str, NDArray[Any]]:
    """Return what each module's first rank gave, by name."""
    answers = [rank for future in pending for rank in future.result(timeout=DEADLINE_S)]
    return {name: full for answer in answers for name, full in answer.items()}


def global_norm(gradients: Iterable[Tensor]) -> float:
    return math.sqrt(sum(grad.square().sum().item() for grad in gradients))


def gradient_errors(
    found: Mapping[str, NDArray[Any]], expected: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return each weight's relative error; gradients that are nearly zero count by a floor."""
    floor = 1e-3 * global_norm(expected.values()) / math.sqrt(len(expected))
    return {
        name: ((torch.tensor(found[name]) - grad).norm() / max(grad.norm().item(), floor)).item()
        for name, grad in expected.items()
    }
