"""What one rank does at the edges of the stage graph in one step. Pure, made from the plan.

An edge is a boundary between two modules or, between two pipeline stages of one module, a
stage link. Both move rows; the engine treats them alike.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from disagg_train.boundary.exchange import BoundaryLayouts, Exchange, Rows
from disagg_train.boundary.layouts import (
    FirstTokens,
    Part,
    Side,
    destination_layout,
    destination_stream,
    holding_of,
    source_of,
    source_stream,
)
from disagg_train.boundary.neighbours import first_tokens, neighbours
from disagg_train.planner.step_plan import StepPlan
from disagg_train.schedule.graph import Reach


@dataclass(frozen=True)
class RankExchanges:
    """One microbatch on one rank.

    Args:
        forward: the rank's part in carrying activations.
        backward: its part in carrying gradients.
        stream_rows: rows of the LLM's stream that the received rows fill, in their order;
            none at a stage link, whose rows are the whole stream.
    """

    forward: Exchange
    backward: Exchange
    stream_rows: Rows = ()


class RankEdge(Protocol):
    """Where rows go from the ranks of one stage to those of another."""

    @property
    def name(self) -> str:
        """Name in ops, logs and errors."""

    @property
    def source(self) -> Side:
        """The module that activations come from."""

    @property
    def destination(self) -> Side:
        """The module that they go to."""

    @property
    def reach(self) -> Reach:
        """How long after the source the destination may take a sample."""

    @property
    def source_stage(self) -> str:
        """Name of the stage that activations come from."""

    @property
    def destination_stage(self) -> str:
        """Name of the stage that they go to."""

    @property
    def source_places(self) -> tuple[int, ...]:
        """Global ranks of the source stage."""

    @property
    def destination_places(self) -> tuple[int, ...]:
        """Global ranks of the destination stage."""

    def replicas_of(self, place: int, gradients: bool) -> tuple[int, ...]:
        """Return the ranks that receive the same rows as ``place``; empty where it is alone."""

    def exchanges(self, plan: StepPlan, place: int) -> tuple[RankExchanges, ...]:
        """Return what the global rank ``place`` does, microbatch by microbatch."""


def edge_places(edge: RankEdge) -> tuple[int, ...]:
    """Return the global ranks at either end of an edge, ascending."""
    return tuple(sorted({*edge.source_places, *edge.destination_places}))


@dataclass(frozen=True)
class Boundary:
    """An edge between two modules: the source's last stage, the destination's first.

    A message carries what one microbatch of the destination needs, of as many of the source's
    as it may draw on: it reads their outputs one after the other, oldest first.
    """

    name: str
    source: Side
    destination: Side
    reach: Reach = Reach()

    @property
    def source_stage(self) -> str:
        """Name of the source's last stage."""
        return self.source.stage_name(-1)

    @property
    def destination_stage(self) -> str:
        """Name of the destination's first stage."""
        return self.destination.stage_name(0)

    @property
    def source_places(self) -> tuple[int, ...]:
        """Global ranks of the source's last stage."""
        return self.source.stage_places(-1)

    @property
    def destination_places(self) -> tuple[int, ...]:
        """Global ranks of the destination's first stage."""
        return self.destination.stage_places(0)

    def replicas_of(self, place: int, gradients: bool) -> tuple[int, ...]:
        """Return the ranks that receive the same rows as ``place``; empty where it is alone."""
        side, stage = (self.source, -1) if gradients else (self.destination, 0)
        return side.replicas_of(stage, place)

    def layouts(self, plan: StepPlan, microbatch: int) -> BoundaryLayouts:
        """Return both layouts of one microbatch."""
        return self._layouts(plan, microbatch)

    def _parts(self, plan: StepPlan, microbatch: int, place: int) -> tuple[Part, Part]:
        drawn = self.reach.drawn_on(microbatch)
        return neighbours(plan, self.source, self.destination, microbatch, drawn, place)

    def _layouts(
        self,
        plan: StepPlan,
        microbatch: int,
        source: Part | None = None,
        destination: Part | None = None,
        tokens: FirstTokens | None = None,
    ) -> BoundaryLayouts:
        drawn, encoder = self.reach.drawn_on(microbatch), self.source.module
        layout, rows = source_of(plan, self.source, drawn, source, tokens)
        return BoundaryLayouts(
            layout,
            destination_layout(plan, encoder, self.destination, microbatch, destination, tokens),
            rows,
        )

    def exchanges(self, plan: StepPlan, place: int) -> tuple[RankExchanges, ...]:
        """Return what the global rank ``place`` does, microbatch by microbatch."""
        found = []
        for microbatch in range(plan.num_microbatches):
            parts = self._parts(plan, microbatch, place)
            tokens = first_tokens(plan, self.source.module, parts[0].samples)
            layouts = self._layouts(plan, microbatch, *parts, tokens)
            routes = layouts.routes()
            holding = holding_of(layouts.destination, place)
            found.append(
                RankExchanges(*layouts.both(place, routes), tuple(holding.rows) if holding else ())
            )
        return tuple(found)


@dataclass(frozen=True)
class StageLink:
    """An edge between two pipeline stages of a module: every rank sends all rows to its peer.

    Args:
        module: the module's ranks.
        stage: the earlier of the two stages.
        merge: rows per token of an encoder's streams; None for the LLM.
    """

    module: Side
    stage: int
    merge: int | None = None
    reach: ClassVar[Reach] = Reach()

    @property
    def name(self) -> str:
        """Both stages' names."""
        return f"{self.source_stage}->{self.destination_stage}"

    @property
    def source(self) -> Side:
        """The module."""
        return self.module

    @property
    def destination(self) -> Side:
        """The module."""
        return self.module

    @property
    def source_stage(self) -> str:
        """Name of the earlier stage."""
        return self.module.stage_name(self.stage)

    @property
    def destination_stage(self) -> str:
        """Name of the later stage."""
        return self.module.stage_name(self.stage + 1)

    @property
    def source_places(self) -> tuple[int, ...]:
        """Global ranks of the earlier stage."""
        return self.module.stage_places(self.stage)

    @property
    def destination_places(self) -> tuple[int, ...]:
        """Global ranks of the later stage."""
        return self.module.stage_places(self.stage + 1)

    def replicas_of(self, place: int, gradients: bool) -> tuple[int, ...]:
        """Nobody: every rank gets its rows from its own peer."""
        del place, gradients
        return ()

    def exchanges(self, plan: StepPlan, place: int) -> tuple[RankExchanges, ...]:
        """Return what the global rank ``place`` does, microbatch by microbatch."""
        sends = place in self.source_places
        here, there = self.source_places, self.destination_places
        peer = there[here.index(place)] if sends else here[there.index(place)]
        found = []
        for microbatch in range(plan.num_microbatches):
            rows = tuple(range(self._num_rows(plan, microbatch, place)))
            message = ((peer, rows),) if rows else ()
            give, take = Exchange(sends=message), Exchange(receives=message, num_rows=len(rows))
            found.append(RankExchanges(*((give, take) if sends else (take, give))))
        return tuple(found)

    def _num_rows(self, plan: StepPlan, microbatch: int, place: int) -> int:
        lane = self.module.grid.coordinates(self.module.places.index(place))["dp"]
        if self.merge is None:
            return destination_stream(plan, self.module, microbatch, lane).num_shard_rows
        return source_stream(plan, self.module, microbatch, lane).num_shard_rows * self.merge
