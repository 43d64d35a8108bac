"""A job in tables: its ranks, layouts, routes and op lists, for people to check. Pure."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table

from disagg_train.boundary.of_job import job_edges, job_placement, module_grid
from disagg_train.boundary.step_exchanges import Boundary
from disagg_train.config.job import JobConfig
from disagg_train.planner.step_plan import StepPlan
from disagg_train.schedule.ops import Op, OpKind, Schedule
from disagg_train.topology.layout import Holding, Layout

_MOST_SPANS = 4


def describe(job: JobConfig, plan: StepPlan, schedule: Schedule) -> RenderableType:
    """Return tables of everything that one step will do.

    Args:
        job: a validated job.
        plan: its first step; layouts and routes are those of its first microbatch.
        schedule: its op lists.
    """
    tables: list[RenderableType] = [_ranks(job)]
    for name, boundary in job_edges(job).items():
        if not isinstance(boundary, Boundary):
            continue
        layouts = boundary.layouts(plan, 0)
        routes = layouts.routes()
        tables.append(_layout(f"{name}: rows held (microbatch 0)", layouts.source))
        tables.append(_layout(f"{name}: rows needed (microbatch 0)", layouts.destination))
        counts: Counter[tuple[int, int]] = Counter()
        for route in routes:
            counts[route.source, route.destination] += len(route)
        tables.append(_routes(name, counts))
    tables.append(_schedule(schedule))
    return Group(*tables)


def _ranks(job: JobConfig) -> Table:
    table = Table(title="ranks", title_justify="left")
    for column in ("global rank", "group", "rank", "modules and coordinates"):
        table.add_column(column)
    placement = job_placement(job)
    for group in job.groups:
        for rank, place in enumerate(placement.places(group)):
            at = []
            for module in placement.modules_on(group):
                point = module_grid(job, module).coordinates(rank)
                at.append(f"{module} (" + " ".join(f"{a}={c}" for a, c in point.items()) + ")")
            table.add_row(str(place), group, str(rank), ", ".join(at))
    return table


def _layout(title: str, layout: Layout) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("global rank", "tokens", "replicas", "token ids @ row"):
        table.add_column(column)
    for index, (place, holding) in enumerate(zip(layout.places, layout.holdings, strict=True)):
        group = next(ranks for ranks in layout.replicas if index in ranks)
        same = ", ".join(str(layout.places[i]) for i in group)
        table.add_row(str(place), str(holding.num_tokens), same, _spans(holding))
    return table


def _spans(holding: Holding) -> str:
    shown = [f"[{s.start}, {s.stop}) @ {s.row}" for s in holding.spans[:_MOST_SPANS]]
    more = len(holding.spans) - _MOST_SPANS
    return "  ".join(shown) + (f"  and {more} more" if more > 0 else "")


def _routes(name: str, counts: Counter[tuple[int, int]]) -> Table:
    table = Table(title=f"{name}: routes (microbatch 0)", title_justify="left")
    for column in ("from rank", "to rank", "tokens", "carried by"):
        table.add_column(column)
    for (source, destination), tokens in sorted(counts.items()):
        carrier = "a copy inside the rank" if source == destination else "one message"
        table.add_row(str(source), str(destination), str(tokens), carrier)
    return table


_LETTERS = {
    OpKind.FORWARD: "F",
    OpKind.BACKWARD: "B",
    OpKind.BACKWARD_INPUT: "b",
    OpKind.BACKWARD_WEIGHT: "w",
    OpKind.RUN_AHEAD: "A",
}


def _schedule(schedule: Schedule) -> Table:
    table = Table(
        title=f"schedule: {schedule.name}",
        title_justify="left",
        caption="F forward, B backward, b its part for inputs, w for weights, A of the next step; "
        "--write-schedule has the transfers too",
        caption_justify="left",
    )
    for column in ("global ranks", "stages", "passes"):
        table.add_column(column)
    by_list: dict[tuple[Op, ...], list[int]] = {}
    for rank, ops in enumerate(schedule.ops):
        by_list.setdefault(ops, []).append(rank)
    for ops, ranks in by_list.items():
        stages = sorted({op.module for op in ops if op.kind in _LETTERS})
        table.add_row(", ".join(map(str, ranks)), "\n".join(stages), _passes(ops, stages))
    return table


def _passes(ops: Sequence[Op], stages: Sequence[str]) -> str:
    """Return what a rank computes, in order; where it hosts several stages, whose it is."""
    words, now = [], stages[0] if len(stages) == 1 else ""
    for op in ops:
        if op.kind not in _LETTERS:
            continue
        if op.module != now:
            words.append(f"{op.module}:")
            now = op.module
        words.append(f"{_LETTERS[op.kind]}{op.microbatch}")
    return " ".join(words)
