"""The part of the job file that the planner writes: what it expected of the layout."""

from pydantic import Field, NonNegativeFloat, PositiveFloat

from disagg_train.config.base import Config


class PlannedConfig(Config):
    """What the planner expected; training says when that does not hold any more."""

    busy_s: dict[str, PositiveFloat]
    """Per module, seconds of a mean step that a rank of its group spends on its forwards and
    backwards."""
    lowest: NonNegativeFloat = 0.0
    """The encoders' time over the LLM's, in times of what was expected, below which another layout
    is quicker; 0 where none is."""
    highest: float | None = Field(default=None, gt=1.0)
    """The same, above which another layout is quicker; none is where not given."""
