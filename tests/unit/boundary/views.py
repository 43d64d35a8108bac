"""What tests look at of a boundary beside what a rank asks: all dp ranks, one side, one part."""

from collections.abc import Sequence

from disagg_train.boundary.exchange import BoundaryLayouts
from disagg_train.boundary.layouts import Side, destination_stream, source_of
from disagg_train.boundary.step_exchanges import Boundary
from disagg_train.planner.step_plan import StepPlan
from disagg_train.topology.layout import Layout
from disagg_train.topology.stream import Stream


def source_layout(plan: StepPlan, side: Side, microbatches: Sequence[int]) -> Layout:
    """Return where the encoder's last stage holds its output rows of some microbatches."""
    return source_of(plan, side, microbatches)[0]


def source_rows(plan: StepPlan, side: Side, microbatches: Sequence[int]) -> tuple[int, ...]:
    """Return the rows of each source rank's outputs of some microbatches, padding included."""
    return source_of(plan, side, microbatches)[1]


def destination_streams(plan: StepPlan, side: Side, microbatch: int) -> tuple[Stream, ...]:
    """Return the LLM's stream of every dp rank."""
    lanes = range(side.grid.dp)
    return tuple(destination_stream(plan, side, microbatch, lane) for lane in lanes)


def layouts_for(boundary: Boundary, plan: StepPlan, microbatch: int, place: int) -> BoundaryLayouts:
    """Return as much of both layouts as ``boundary.exchanges`` looks at for a global rank."""
    return boundary._layouts(plan, microbatch, *boundary._parts(plan, microbatch, place))
