"""What the shapes of one module would take on some ranks: rough, to rank thousands. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt

from disagg_train.planner.sample_costs import ModuleCost, StageCost
from disagg_train.planner.shapes import Shape
from disagg_train.planner.workload import Load
from disagg_train.schedule.ops import OpKind

_WHOLE = (OpKind.FORWARD, OpKind.BACKWARD)
_UNEVEN = 0.5
"""Part of the samples' spread by which the busiest of a few lanes is above their mean; balance
leaves about so much."""


@dataclass(frozen=True)
class Option:
    """A module on some ranks.

    Args:
        shape: of a replica.
        dp: replicas.
        busy_s: seconds per step on the busiest rank.
        fill_s: seconds that a microbatch takes to and fro through all stages but one.
        state_bytes: on the rank that holds most.
        passing_bytes: of what lives inside one op, on the rank where it is most.
        activation_bytes: of a microbatch, on the rank that holds most.
        run: microbatches whose samples an encoder takes at once (``gathering``).
    """

    shape: Shape
    dp: int
    busy_s: float
    fill_s: float
    state_bytes: float
    passing_bytes: float
    activation_bytes: float
    run: int = 1

    def no_worse(self, other: "Option") -> bool:
        """Whether it is at least as good as another one in all that counts."""
        return (
            self.busy_s <= other.busy_s
            and self.fill_s <= other.fill_s
            and self.state_bytes <= other.state_bytes
            and self.passing_bytes <= other.passing_bytes
            and self.activation_bytes <= other.activation_bytes
            and self.run <= other.run
        )


def option(
    shape: Shape,
    dp: int,
    cost: ModuleCost,
    load: Load,
    num_samples: float,
    num_microbatches: int,
    state_bytes: Sequence[float],
    passing_bytes_per_token: Sequence[float],
    run: int = 1,
) -> Option:
    """Return what a shape would take.

    Args:
        shape: of a replica.
        dp: replicas.
        cost: of the module in that shape.
        load: what a step asks of the module.
        num_samples: of a step.
        num_microbatches: of a step.
        state_bytes: of a rank, per stage.
        passing_bytes_per_token: what lives inside one op, per stage.
        run: microbatches whose samples are taken at once.
    """
    lane_samples = num_samples * run / (dp * num_microbatches)
    uneven = 1.0 + _UNEVEN * load.spread / sqrt(max(lane_samples, 1.0))
    share = uneven * max(1.0, 1.0 / lane_samples) / dp
    stages_s = [_stage_s(stage, load, share, num_microbatches) for stage in cost.stages]
    once_s = [sum(stage.once_s.values()) for stage in cost.stages]
    tokens = load.tokens * share / num_microbatches
    bytes_of = [stage.bytes_per_token * tokens for stage in cost.stages]
    of_ranks = [range(rank, len(stages_s), shape.pp) for rank in range(shape.pp)]
    busy_s = max(sum(stages_s[at] + once_s[at] for at in stages) for stages in of_ranks)
    return Option(
        shape,
        dp,
        busy_s,
        (shape.pp - 1) * max(stages_s) * run / num_microbatches,
        max(sum(state_bytes[at] for at in stages) for stages in of_ranks),
        tokens * run * max(passing_bytes_per_token),
        max(sum(bytes_of[at] for at in stages) for stages in of_ranks),
        run,
    )


def _stage_s(stage: StageCost, load: Load, share: float, num_microbatches: int) -> float:
    """Return the seconds of a stage's passes of one step."""
    passes = [stage.passes[kind] for kind in _WHOLE]
    once = sum(each.per_microbatch_s for each in passes) * num_microbatches
    tokens = sum(each.per_token_s for each in passes) * load.tokens
    squares = sum(each.per_square_s for each in passes) * load.squares
    return once + (tokens + squares) * share


def undominated(options: Iterable[Option]) -> list[Option]:
    """Return the options that no other one beats in all that counts, quickest first."""
    kept: list[Option] = []
    for each in sorted(options, key=_cost):
        if not any(other.no_worse(each) for other in kept):
            kept.append(each)
    return kept


def _cost(each: Option) -> tuple[float, ...]:
    held = each.state_bytes, each.passing_bytes, each.activation_bytes
    return each.busy_s, each.fill_s, *held, each.run
