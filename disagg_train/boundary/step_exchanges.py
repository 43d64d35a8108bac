"""All exchanges of one step and boundary, as one rank sees them. Pure, made from the plan."""

from dataclasses import dataclass

from disagg_train.boundary.exchange import BoundaryLayouts, Exchange, Rows
from disagg_train.boundary.layouts import (
    Side,
    destination_layout,
    holding_of,
    source_layout,
    source_rows,
)
from disagg_train.planner.step_plan import StepPlan


@dataclass(frozen=True)
class Boundary:
    """An edge of the module graph with its two sides."""

    name: str
    source: Side
    destination: Side

    @property
    def places(self) -> tuple[int, ...]:
        """Global ranks on either side, ascending."""
        return tuple(sorted({*self.source.places, *self.destination.places}))

    def layouts(self, plan: StepPlan, microbatch: int) -> BoundaryLayouts:
        """Return both layouts of one microbatch."""
        return BoundaryLayouts(
            source_layout(plan, self.source, microbatch),
            destination_layout(plan, self.source.module, self.destination, microbatch),
            source_rows(plan, self.source, microbatch),
        )


@dataclass(frozen=True)
class RankExchanges:
    """One microbatch on one rank.

    Args:
        forward: the rank's part in carrying activations.
        backward: its part in carrying gradients.
        stream_rows: rows of the LLM's stream that the received rows fill, in their order.
    """

    forward: Exchange
    backward: Exchange
    stream_rows: Rows


def step_exchanges(plan: StepPlan, boundary: Boundary, place: int) -> tuple[RankExchanges, ...]:
    """Return what the global rank ``place`` does at ``boundary``, microbatch by microbatch."""
    found = []
    for microbatch in range(plan.num_microbatches):
        layouts = boundary.layouts(plan, microbatch)
        routes = layouts.routes()
        holding = holding_of(layouts.destination, place)
        found.append(
            RankExchanges(
                layouts.forward(place, routes),
                layouts.backward(place, routes),
                tuple(holding.rows) if holding else (),
            )
        )
    return tuple(found)
