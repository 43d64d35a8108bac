"""What Ray says of a dead or failed actor, told as a RankError."""

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from disagg_train.errors import (
    BoundaryError,
    Cause,
    CheckpointError,
    DataError,
    PlanError,
    RankError,
)

_QUICK_S = 2.0
_LOST_CONTACT = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting")


def explain(
    error: BaseException, actor: ray.actor.ActorHandle, group: str, rank: int, node: str
) -> Exception:
    """Return what happened to a rank, as one of our own errors.

    A sample, a plan or a checkpoint at fault is the user's to mend, so those errors pass as they
    are.
    """
    if isinstance(error, RayActorError):
        return RankError(f"the actor died: {_last_line(error)}", group, rank, node, cause="died")
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, DataError | PlanError | CheckpointError):
        return cause
    message = f"{type(cause).__name__}: {cause}"
    return RankError(message, group, rank, node, _op_of(actor), _cause_of(cause))


def _cause_of(error: BaseException) -> Cause:
    """Return whether a rank raised by itself, or only lost contact with another one."""
    if isinstance(error, BoundaryError):
        return "peer"
    return "collective" if any(text in str(error) for text in _LOST_CONTACT) else "raised"


def _op_of(actor: ray.actor.ActorHandle) -> str:
    try:
        return str(ray.get(actor.current_op.remote(), timeout=_QUICK_S))
    except (RayActorError, GetTimeoutError):
        return ""


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
