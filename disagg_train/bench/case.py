"""The boundary that is measured: two layouts on ranks of their own and one microbatch. Pure."""

from dataclasses import dataclass
from functools import cached_property
from math import lcm

from disagg_train.boundary.layouts import Side
from disagg_train.boundary.step_exchanges import Boundary
from disagg_train.config.modules import ParallelConfig
from disagg_train.planner.balance import in_order, split_evenly
from disagg_train.planner.step_plan import SampleSize, Slot, StepPlan
from disagg_train.topology.grid import Grid

VALUE_BYTES = 4
"""Rows are fp32."""
_ENCODER, _LANGUAGE = "vision", "language"


@dataclass(frozen=True)
class BoundaryCase:
    """One microbatch of ``num_tokens`` rows of ``hidden_size`` fp32 values.

    The source's ranks come first, the destination's follow. The tokens make equal samples,
    as many as both sides' dp divide, so that every dp rank has equal work.
    """

    source: ParallelConfig
    destination: ParallelConfig
    num_tokens: int
    hidden_size: int

    @property
    def num_ranks(self) -> int:
        """Ranks of both sides together."""
        return self.source.num_ranks + self.destination.num_ranks

    @property
    def payload_bytes(self) -> int:
        """Bytes of all tokens, once."""
        return self.num_tokens * self.hidden_size * VALUE_BYTES

    @cached_property
    def boundary(self) -> Boundary:
        """The edge with its two sides."""
        first = self.source.num_ranks
        return Boundary(
            f"{_ENCODER}->{_LANGUAGE}",
            _side(_ENCODER, self.source, range(first)),
            _side(_LANGUAGE, self.destination, range(first, self.num_ranks)),
        )

    @cached_property
    def plan(self) -> StepPlan:
        """A step of one microbatch whose samples are images and nothing else."""
        count = lcm(self.source.dp, self.destination.dp)
        lengths = [len(part) for part in split_evenly(range(self.num_tokens), count)]
        samples = tuple(
            SampleSize(key, length, 1, {_ENCODER: (Slot(0, length),)}, {_ENCODER: (length,)})
            for key, length in enumerate(lengths)
        )
        assignment = {
            _ENCODER: in_order(count, 1, self.source.dp),
            _LANGUAGE: in_order(count, 1, self.destination.dp),
        }
        return StepPlan(0, samples, assignment)

    @property
    def raw_pairs(self) -> int:
        """How many pairs of ranks carry the raw message between them.

        With replicas on a side, one source rank sends everything to one destination rank.
        Without, every rank of the narrower side takes part: rank i sends to rank i, and
        each pair carries an equal part.
        """
        sides = (self.source, self.destination)
        if any(side.tp > 1 and not side.sequence_parallel for side in sides):
            return 1
        return min(side.num_ranks for side in sides)


def _side(module: str, parallel: ParallelConfig, places: range) -> Side:
    grid = Grid(tp=parallel.tp, cp=parallel.cp, dp=parallel.dp, pp=parallel.pp)
    return Side(module, grid, tuple(places), parallel.sequence_parallel)
