"""What Ray says of a dead or failed actor, told as a RankError."""

from collections.abc import Mapping

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from disagg_train.errors import DataError, PlanError, RankError

_QUICK_S = 2.0


class RankDiedError(RankError):
    """The rank's process is gone; its peers' errors only follow from that."""

    died = True


def explain(
    error: BaseException, actor: ray.actor.ActorHandle, group: str, rank: int, node: str
) -> Exception:
    """Return what happened to a rank, as one of our own errors.

    A sample or a plan at fault is the user's to mend, so those errors pass as they are.
    """
    if isinstance(error, RayActorError):
        return RankDiedError(f"the actor died: {_last_line(error)}", group, rank, node)
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, DataError | PlanError):
            return cause
        return RankError(f"{type(cause).__name__}: {cause}", group, rank, node, _op_of(actor))
    return RankError(f"{type(error).__name__}: {error}", group, rank, node, _op_of(actor))


def _op_of(actor: ray.actor.ActorHandle) -> str:
    try:
        return str(ray.get(actor.current_op.remote(), timeout=_QUICK_S))
    except (RayActorError, GetTimeoutError):
        return ""


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def hang_report(stacks: Mapping[int, str]) -> str:
    """Return the stacks of ranks that did not answer, one after the other."""
    return "\n".join(f"--- rank {rank}\n{stack}" for rank, stack in sorted(stacks.items()))
