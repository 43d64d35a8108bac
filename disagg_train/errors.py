"""The errors a user can meet. Each message gives the value, the rule, and the way out."""

from collections.abc import Iterable
from typing import Literal


class DisaggTrainError(Exception):
    """Base of every error that this project raises on purpose."""


class ConfigError(DisaggTrainError, ValueError):
    """The job file asks for something that cannot be."""


class PlanError(DisaggTrainError):
    """A layout, a step plan or a schedule breaks its own rules."""


class BoundaryError(DisaggTrainError):
    """An exchange between two modules failed or timed out."""


class DataError(DisaggTrainError):
    """A sample or a data set cannot be used."""


class CheckpointError(DisaggTrainError):
    """A checkpoint cannot be written or read."""


class ClusterError(DisaggTrainError):
    """The cluster cannot hold the job's groups."""


_STOPPED = "the run was asked to stop and saved a checkpoint; `resume: auto` goes on from there"


class RunStopped(DisaggTrainError):  # noqa: N818 - not a mistake, but somebody's wish
    """Somebody who looks on asked the run to stop; the text says whether it saved."""

    def __init__(self, why: str = _STOPPED) -> None:
        super().__init__(why)


class SubmissionError(DisaggTrainError):
    """A cluster's job server cannot be reached, or does not do what it was asked to."""


Cause = Literal["died", "hung", "raised", "peer", "collective"]


class RankError(DisaggTrainError):
    """A rank died, hung or raised.

    Args:
        message: what happened.
        group: name of the actor group.
        rank: rank inside the group.
        node: address of the node, where known.
        op: the op the rank was running, as ``kind module microbatch``, where known.
        cause: whether its process is gone, or answers nothing, or it raised, or a peer failed it,
            which it names, or some peer in a collective.
    """

    def __init__(
        self,
        message: str,
        group: str,
        rank: int,
        node: str = "",
        op: str = "",
        cause: Cause = "raised",
    ) -> None:
        where = f"group {group!r} rank {rank}"
        where += f" on node {node}" if node else ""
        where += f" during {op}" if op else ""
        super().__init__(f"{where}: {message}")
        self.message = message
        self.group, self.rank, self.node, self.op, self.cause = group, rank, node, op, cause

    def __reduce__(self) -> tuple[type["RankError"], tuple[str, str, int, str, str, Cause]]:
        """Pickle by the constructor's arguments, so that the error survives its way home."""
        arguments = (self.message, self.group, self.rank, self.node, self.op, self.cause)
        return type(self), arguments


def culprit(errors: Iterable[BaseException]) -> BaseException:
    """Return the error to blame: a death, a hang, an exception, then what only followed."""
    order: list[Cause] = ["died", "hung", "raised", "peer", "collective"]

    def rank_of(error: BaseException) -> int:
        return order.index(error.cause if isinstance(error, RankError) else "raised")

    return min(errors, key=rank_of)
