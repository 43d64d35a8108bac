"""Who is to blame for a failure, from what is known of every rank. Asks nobody."""

from collections.abc import Sequence
from dataclasses import dataclass

from actors.agent import Home, Sighting
from actors.failure import last_line
from actors.worker import Status
from disagg_train.driver.failure import Condition, RankCondition
from disagg_train.errors import RankError
from disagg_train.schedule.ops import OpKind

_STATES = {
    "T": "is stopped",
    "t": "is stopped by a debugger",
    "D": "waits in the kernel",
    "S": "sleeps",
    "R": "computes",
}
_ALIVE = ("R", "S", "D")
_COMPUTE = frozenset(kind.value for kind in OpKind if kind.is_compute)


@dataclass
class Known:
    """What is known of a rank.

    Args:
        group: its actor group.
        rank: its number in the group.
        home: where its process is.
        status: what it says of itself; None where it does not answer.
        death: what Ray says of its end; empty while it lives.
        seen: what its node's agent sees.
    """

    group: str
    rank: int
    home: Home
    status: Status | None = None
    death: str = ""
    seen: Sighting = Sighting()

    @property
    def is_silent(self) -> bool:
        """Whether it lives but does not answer."""
        return self.status is None and not self.death

    @property
    def failed_for_sure(self) -> bool:
        """Whether it is to blame whatever the others are at.

        A process that runs but does not answer may only be slow to do so.
        """
        is_lost = self.is_silent and self.seen.state not in _ALIVE
        return bool(self.death) or is_lost or self.raised

    @property
    def raised(self) -> bool:
        """Whether it failed by itself."""
        return self.status is not None and self.status.failed == "raised"

    @property
    def lost_a_peer(self) -> bool:
        """Whether it failed since another rank did."""
        return self.status is not None and self.status.failed in ("peer", "collective")

    @property
    def is_busy(self) -> bool:
        """Whether it runs something."""
        return self.status is not None and self.status.is_busy

    @property
    def computes(self) -> bool:
        """Whether it is at something for which it needs no other module's ranks."""
        return self.is_busy and (not self.op or self.op.partition(" ")[0] in _COMPUTE)

    @property
    def op(self) -> str:
        """What it is at, or was at last."""
        return self.seen.op if self.status is None else self.status.at

    @property
    def condition(self) -> RankCondition:
        """The rank as the report has it."""
        stack = self.seen.stack if self.status is None else self.status.stack
        where = self.group, self.rank, self.home.address, self.home.pid
        return RankCondition(*where, self._condition, self.op, stack)

    @property
    def _condition(self) -> Condition:
        if self.death:
            return "dead"
        if self.is_silent:
            return "silent"
        if self.raised:
            return "failed"
        return "working" if self.computes else "waiting"

    @property
    def error(self) -> RankError:
        """What to say of it where it is to blame."""
        where = self.group, self.rank, self.home.address, self.op
        if self.death:
            return RankError(f"the actor died: {self.death}", *where, cause="died")
        if self.status is None:
            state = _STATES.get(self.seen.state, "cannot be seen")
            message = f"hangs: it does not answer; its process {state}"
            return RankError(message, *where, cause="hung")
        if self.raised:
            return RankError(last_line(self.status.stack), *where)
        return RankError("hangs: all others wait for it", *where, cause="hung")


def culprits(ranks: Sequence[Known]) -> list[Known]:
    """Return the ranks to blame, the likeliest first; none where that cannot be told.

    A rank that fails leaves its groups, so that those that wait for it fail too, and so on. Who
    has not failed once that is over is what the others waited for.
    """
    sure = [rank for rank in ranks if rank.failed_for_sure]
    if sure:
        return sorted(sure, key=lambda rank: (not rank.death, rank.raised))
    if silent := [rank for rank in ranks if rank.is_silent]:
        return silent
    if any(rank.lost_a_peer for rank in ranks):
        return [rank for rank in ranks if rank.is_busy]
    behind = [rank for rank in ranks if rank.computes]
    return behind if len(behind) < len(ranks) else []


def error_of(error: BaseException, blamed: Sequence[Known]) -> BaseException:
    """Return the error to report: the one that was met, unless that only followed.

    Args:
        error: the one that was met.
        blamed: ranks, the likeliest first.
    """
    if not blamed or not isinstance(error, RankError):
        return error
    if any((rank.group, rank.rank) == (error.group, error.rank) for rank in blamed):
        return error
    return blamed[0].error
