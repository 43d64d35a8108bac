"""One clear report of a failure: who, where, at which op, what, and who waited for it. Pure."""

import re
from collections.abc import Hashable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from disagg_train.errors import RankError

Condition = Literal["working", "failed", "dead", "silent", "waiting"]

_VARYING = re.compile(r"0x[0-9a-fA-F]+|\b[0-9a-f]{16,}\b|\d+")
"""Addresses, ids and numbers: another process has others, though it fails the same way."""


@dataclass(frozen=True)
class RankCondition:
    """What a rank was found to be at after a failure.

    Args:
        group: its actor group.
        rank: its number inside the group.
        node: address of its node.
        pid: of its process; 0 where not known.
        condition: whether it works on, failed by itself, is gone, does not answer, or only lost
            the peer that it waited for.
        op: that it was at, as ``kind module microbatch``.
        stack: of its process, where it could be had.
    """

    group: str
    rank: int
    node: str
    pid: int
    condition: Condition
    op: str = ""
    stack: str = ""


@dataclass(frozen=True)
class Failure:
    """A failure of a run.

    Args:
        error: of the culprit.
        step: that failed.
        groups: those that have to be made anew.
        ranks: what every rank was found to be at.
    """

    error: BaseException
    step: int
    groups: tuple[str, ...]
    ranks: tuple[RankCondition, ...]

    @property
    def signature(self) -> Hashable:
        """What two failures have in common that are the same: all but what varies by chance."""
        what = _VARYING.sub("#", _first_line(self.error))
        error = self.error
        if isinstance(error, RankError):
            return error.cause, error.group, error.rank, self._op, what
        return type(error).__name__, what

    @property
    def headline(self) -> str:
        """The failure in one line."""
        return f"step {self.step}: {self._where}{_first_line(self.error)}"

    @property
    def text(self) -> str:
        """The whole report: the error, and every rank's condition, the culprit's first."""
        parts = [self.headline]
        if "\n" in (message := _message(self.error).strip()):
            parts.append(message)
        parts += [_paragraph(rank) for rank in self._culprit_first()]
        if self.groups:
            parts.append(f"to be made anew: {', '.join(self.groups)}")
        return "\n".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        error = self.error
        blamed = (
            {"group": error.group, "rank": error.rank, "cause": error.cause}
            if isinstance(error, RankError)
            else {}
        )
        kind, module, microbatch = _parts(self._op)
        return {
            "step": self.step,
            "headline": self.headline,
            "error": type(error).__name__,
            "message": _message(error),
            **blamed,
            "node": self._node,
            "op": kind,
            "module": module,
            "microbatch": microbatch,
            "groups": list(self.groups),
            "ranks": [asdict(rank) for rank in self.ranks],
        }

    @property
    def _where(self) -> str:
        error = self.error
        if not isinstance(error, RankError):
            return ""
        kind, module, microbatch = _parts(self._op)
        rank = f" rank {error.rank}" if error.rank >= 0 else ""
        words = [f"group {error.group!r}{rank}"]
        words += [f"node {self._node}"] if self._node else []
        words += [f"module {module}"] if module else []
        words += [f"microbatch {microbatch}"] if microbatch is not None else []
        words += [f"op {kind}"] if kind else []
        return ", ".join(words) + ": "

    @property
    def _blamed(self) -> RankCondition | None:
        error = self.error
        if not isinstance(error, RankError):
            return None
        of_error = ((r, (r.group, r.rank) == (error.group, error.rank)) for r in self.ranks)
        return next((rank for rank, is_it in of_error if is_it), None)

    @property
    def _op(self) -> str:
        """The culprit's op; a dead rank's is known from its condition, if at all."""
        of_error = self.error.op if isinstance(self.error, RankError) else ""
        return of_error or (self._blamed.op if self._blamed else "")

    @property
    def _node(self) -> str:
        of_error = self.error.node if isinstance(self.error, RankError) else ""
        return of_error or (self._blamed.node if self._blamed else "")

    def _culprit_first(self) -> list[RankCondition]:
        order: list[Condition] = ["dead", "failed", "silent", "waiting", "working"]
        return sorted(
            self.ranks, key=lambda rank: (rank is not self._blamed, order.index(rank.condition))
        )


def _parts(op: str) -> tuple[str, str, int | None]:
    """Return the kind, the module or boundary, and the microbatch that an op's name has."""
    kind, *rest = op.split() or [""]
    microbatch = int(rest.pop()) if rest and rest[-1].isdigit() else None
    return kind, " ".join(rest), microbatch


def _message(error: BaseException) -> str:
    return error.message if isinstance(error, RankError) else f"{type(error).__name__}: {error}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in _message(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _paragraph(rank: RankCondition) -> str:
    where = f"{rank.group} rank {rank.rank} (node {rank.node or 'unknown'}, pid {rank.pid or '?'})"
    line = f"{where}: {rank.condition}" + (f" during {rank.op}" if rank.op else "")
    stack = "".join(f"\n    {row}" for row in rank.stack.splitlines())
    return line + stack
