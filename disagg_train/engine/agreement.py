"""What all ranks of a job settle together: the plan before a step, the update at its end.

At the commit point every rank adds its part to a small vector on the job-wide control
group: the squared norm of the gradients that it alone counts, and the LLM's ranks their
losses. All ranks then hold the same sum and decide the same.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from disagg_train.boundary.gloo import GlooGroup
from disagg_train.engine.stage import Stage
from disagg_train.errors import PlanError
from disagg_train.planner.step_plan import StepPlan


@dataclass(frozen=True)
class Agreement:
    """What all ranks agreed on.

    Args:
        grad_norm: over all modules.
        loss_sum: over all target tokens of the global batch.
        skip: whether no module may change its weights.
    """

    grad_norm: float = 0.0
    loss_sum: float = 0.0
    skip: bool = False


def agree(
    control: GlooGroup, stages: Mapping[str, Stage], modules: Sequence[str], loss_sum: float
) -> Agreement:
    """Settle the step over all ranks of the job.

    Args:
        control: group of all ranks.
        stages: this rank's stages; their gradients are synced.
        modules: all modules of the job; slot i of the vector belongs to the i-th.
        loss_sum: this rank's part of the loss, each token counted on one rank.
    """
    slots = torch.zeros(len(modules) + 1, dtype=torch.float64)
    for stage in stages.values():
        if stage.optimizer is not None:
            slots[modules.index(stage.module)] += stage.optimizer.squared_norm()
    slots[-1] = loss_sum
    control.all_reduce(slots)
    squared = slots[:-1].sum().item()
    healthy = math.isfinite(squared)
    return Agreement(math.sqrt(squared) if healthy else math.inf, slots[-1].item(), not healthy)


def check_same_plan(control: GlooGroup, plan: StepPlan) -> None:
    """Compare the plan's digest over all ranks, before a byte of the step moves.

    gloo aborts a process whose receive buffer is too short, so a mismatch must be found here.

    Raises:
        PlanError: naming the ranks that hold another plan than most, or than the first.
    """
    digests = [int(digest) for digest in control.all_gather(torch.tensor([plan.digest]))]
    usual = Counter(digests).most_common(1)[0][0]
    of_place = dict(zip(control.places, digests, strict=True))
    odd = [place for place, digest in of_place.items() if digest != usual]
    if odd:
        first = next(place for place, digest in of_place.items() if digest == usual)
        raise PlanError(f"step {plan.step}: the ranks {odd} hold another plan than rank {first}")
