"""The parts of the job file that say how a run survives: checkpoints and recovery."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from disagg_train.config.base import Config


class CheckpointConfig(Config):
    """When the whole state of a run is written, and how much of that is kept.

    A run that comes to its end always leaves a checkpoint.
    """

    folder: str | None = None
    """Where checkpoints go: a folder that all nodes see, or an address that fsspec knows
    (`s3://...`); `checkpoints` in the run's `output` where not given."""
    every_steps: NonNegativeInt = 0
    """Write one after every so many steps; 0 for no such rule."""
    every_minutes: NonNegativeFloat = 30.0
    """Write one when the last is so old; 0 for no such rule."""
    keep: PositiveInt = 3
    """Newest checkpoints that are kept; older ones are removed once a newer one is complete."""
    asynchronous: bool = True
    """Write while training goes on: it stands still only while the state is copied to the host."""
    on_error: Literal["stop", "continue"] = "stop"
    """What a checkpoint that cannot be written does (a full disk): end the run, or be reported,
    while training goes on. Older checkpoints stay as they are."""


class RecoveryConfig(Config):
    """What happens when a rank dies, hangs or fails."""

    restart: Literal["group", "job", "never"] = "group"
    """`group`: the actors of the failed group are made anew, all others keep their processes, and
    all groups go back to a step of which memory holds every rank's state, or else to the newest
    checkpoint. `job`: all actors are made anew, from the newest checkpoint. `never`: the run
    ends."""
    max_restarts: NonNegativeInt = 10
    """More restarts than this end the run."""
    backoff_s: NonNegativeFloat = 1.0
    """Pause before a restart; twice as long each time, while no step is completed in between."""
    max_overhead: float = Field(default=0.03, gt=0.0, le=1.0)
    """With `group`: largest part of the step time that keeping copies in memory may take; how
    often copies are made follows from it and from what one was measured to take."""
    copy_every_steps: PositiveInt | None = None
    """With `group`: make copies after every so many steps, whatever they take."""
    replacement_s: PositiveFloat = 60.0
    """How long to wait for resources in a lost node's place; after that, the group goes on with
    the ranks that are left and less data parallelism, where its degrees allow that."""
    grace_s: PositiveFloat = 25.0
    """After SIGTERM or a first Ctrl-C: how long the run may take to end its step and to save.
    Kubernetes gives a pod 30 seconds."""
