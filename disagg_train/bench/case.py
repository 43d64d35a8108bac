"""The boundary that is measured: two layouts on ranks of their own and one microbatch. Pure."""

from dataclasses import dataclass
from functools import cached_property
from math import lcm
from typing import Self

from disagg_train.boundary.layouts import Side
from disagg_train.boundary.step_exchanges import Boundary
from disagg_train.config.modules import ParallelConfig
from disagg_train.planner.in_order import in_order, split_evenly
from disagg_train.planner.step_plan import SampleSize, Slot, StepPlan
from disagg_train.topology.grid import Grid
from disagg_train.topology.layout import Layout

VALUE_BYTES = 4
"""Rows are fp32."""
_ENCODER, _LANGUAGE = "vision", "language"


@dataclass(frozen=True)
class BoundaryCase:
    """One microbatch of ``num_tokens`` rows of ``hidden_size`` fp32 values.

    The source's ranks come first, the destination's follow. The tokens make equal samples,
    as many as both sides' dp divide, so that every dp rank has equal work.

    Args:
        source: layout of the encoder's last pipeline stage; its pp is 1.
        destination: layout of the LLM's first pipeline stage; its pp is 1.
        num_tokens: rows that cross in each direction.
        hidden_size: values per row.
    """

    source: ParallelConfig
    destination: ParallelConfig
    num_tokens: int
    hidden_size: int

    @classmethod
    def between(
        cls,
        source: ParallelConfig,
        destination: ParallelConfig,
        num_tokens: int,
        hidden_size: int,
    ) -> Self:
        """Return the case of two whole modules.

        Only the source's last pipeline stage and the destination's first take part in a
        boundary, so the other stages are left out: pp changes nothing of what is measured.
        """
        return cls(_stage(source), _stage(destination), num_tokens, hidden_size)

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
    def has_replicas(self) -> bool:
        """Whether, on either side, several ranks hold the same tokens."""
        return any(_is_replicated(side) for side in (self.source, self.destination))

    @property
    def raw_pairs(self) -> int:
        """How many pairs of ranks carry the raw message between them.

        With replicas on a side, one source rank sends everything to one destination rank.
        Without, every rank of the narrower side takes part: rank i sends to rank i, and
        each pair carries an equal part.
        """
        if self.has_replicas:
            return 1
        return min(self.source.num_ranks, self.destination.num_ranks)

    @property
    def max_rank_lower_bound(self) -> float:
        """The least that the busiest rank can send or receive across / all tokens.

        Whatever the routes are, the ranks that hold the same tokens must together send
        them (or receive them) once, so one of them carries at least its equal share. The
        bound is the largest such share on either side: 1/R for equal samples, with R ranks
        on the narrower side. Every token is needed by the destination.
        """
        layouts = self.boundary.layouts(self.plan, 0)
        sides = layouts.source, layouts.destination
        return max(map(_largest_share, sides)) / self.num_tokens

    @property
    def megatron_bar(self) -> float | None:
        """The most that ours / Megatron's may be (DESIGN, section 9), None without a bar."""
        if self.destination.sequence_parallel or self.destination.cp > 1:
            return 0.5
        return 0.85 if self.has_replicas else None

    @property
    def raw_bar(self) -> float | None:
        """The most that ours / raw may be (DESIGN, section 9), None without a bar."""
        return None if self.has_replicas else 1.3


def _stage(parallel: ParallelConfig) -> ParallelConfig:
    return parallel.model_copy(update={"pp": 1})


def _is_replicated(parallel: ParallelConfig) -> bool:
    return parallel.tp > 1 and not parallel.sequence_parallel


def _largest_share(layout: Layout) -> float:
    """Return the most tokens per rank that a group of replicas holds."""
    return max(layout.holdings[group[0]].num_tokens / len(group) for group in layout.replicas)


def _side(module: str, parallel: ParallelConfig, places: range) -> Side:
    grid = Grid(tp=parallel.tp, cp=parallel.cp, dp=parallel.dp)
    return Side(module, grid, tuple(places), parallel.sequence_parallel)
