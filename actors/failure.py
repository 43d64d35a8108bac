"""What Ray says of a dead or failed actor, told as a RankError."""

import ray
import torch.distributed as dist
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
_LONGEST = 500
_GUESSES = " Some common causes include"
_LOST_CONTACT = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting")


def explain(
    error: BaseException, actor: ray.actor.ActorHandle, group: str, rank: int, node: str
) -> Exception:
    """Return what happened to a rank, as one of our own errors.

    A sample, a plan or a checkpoint at fault is the user's to mend, so those errors pass as they
    are.
    """
    if isinstance(error, RayActorError):
        return RankError(f"the actor died: {death_of(error)}", group, rank, node, cause="died")
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, DataError | PlanError | CheckpointError):
        return cause
    message = f"{type(cause).__name__}: {cause}"
    return RankError(message, group, rank, node, _op_of(actor), cause_of(cause))


def cause_of(error: BaseException) -> Cause:
    """Return whether a rank raised by itself, or only lost contact with another one."""
    if isinstance(error, BoundaryError):
        return "peer"
    lost = isinstance(error, dist.DistError) or any(text in str(error) for text in _LOST_CONTACT)
    return "collective" if lost else "raised"


def _op_of(actor: ray.actor.ActorHandle) -> str:
    try:
        return str(ray.get(actor.current_op.remote(), timeout=_QUICK_S))
    except (RayActorError, GetTimeoutError):
        return ""


def death_of(error: RayActorError) -> str:
    """Return what Ray says of an actor's end, without its particulars and its advice.

    After a first line come indented particulars, then the reason; where memory ran out, a list
    of the processes that took it follows.
    """
    lines = [line for line in str(error).splitlines() if line.strip()]
    reasons = [line.strip() for line in lines[1:] if not line.startswith(("\t", " "))]
    return last_line(reasons[0] if reasons else error)[:_LONGEST]


def last_line(error: object) -> str:
    """Return the last line of an error's text, or of a traceback: what there is to say.

    What Ray guesses about deaths in general is left out.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].partition(_GUESSES)[0] if lines else type(error).__name__
