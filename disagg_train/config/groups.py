"""Actor groups in the job file: how many ranks, and which nodes they may be on."""

from typing import Literal

from pydantic import Field, PositiveInt

from disagg_train.config.base import Config
from disagg_train.config.environment import Environment
from disagg_train.config.kubernetes import Labels


class GroupConfig(Config):
    """An actor group: ranks that no other group shares."""

    ranks: PositiveInt
    """Number of actors; one actor is one rank on one GPU, or one CPU process."""
    gpus_per_rank: float = Field(default=1.0, gt=0.0, le=1.0)
    """Part of a GPU that a rank takes: 0.25 puts up to four ranks on one GPU, to test several
    ranks where GPUs are few; they share its time and memory. Needs NCCL 2.30 or newer."""
    accelerator: str | None = Field(default=None, pattern=r"^[\w.-]+$")
    """Kind of GPU that the ranks must be on, by Ray's name for it (`H100`, `L40S`, ...); any where
    not given. Ranks on CPUs do not ask. Planning knows H100, H200, A100, L40S and B200."""
    labels: Labels = {}
    """Labels that the group's Ray nodes must have (`ray start --labels pool=encoder`); any nodes
    where not given. `disagg-train manifest` puts them on the nodes that it makes for the group,
    those under `ray.io/` apart, which Ray sets itself."""
    strategy: Literal["pack", "spread"] = "pack"
    """`pack`: on few nodes; `spread`: over many. The ranks of a tp group share a node in both,
    unless no node is large enough."""
    environment: Environment = {}
    """Environment variables of this group's ranks, in place of the job's of the same names."""
