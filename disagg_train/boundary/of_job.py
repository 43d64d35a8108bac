"""What a job file says about ranks: placement, grids, boundaries, and the module graph. Pure."""

from disagg_train.boundary.layouts import Side
from disagg_train.boundary.step_exchanges import Boundary
from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.schedule.graph import Edge, ModuleGraph, ModuleNode
from disagg_train.topology.grid import Grid
from disagg_train.topology.placement import Placement


def job_placement(job: JobConfig) -> Placement:
    """Return which global ranks each group and module owns."""
    return Placement(
        {name: group.ranks for name, group in job.groups.items()},
        {name: module.group for name, module in job.modules.items()},
    )


def module_grid(job: JobConfig, module: str) -> Grid:
    """Return a module's ranks by axis."""
    parallel = job.modules[module].parallel
    return Grid(tp=parallel.tp, cp=parallel.cp, dp=parallel.dp, pp=parallel.pp)


def job_boundaries(job: JobConfig) -> dict[str, Boundary]:
    """Return every boundary by name, in the order of the job file."""
    placement = job_placement(job)

    def side(module: str) -> Side:
        parallel = job.modules[module].parallel
        places = placement.module_places(module)
        return Side(module, module_grid(job, module), places, parallel.sequence_parallel)

    edges = {edge.name: edge for edge in job_graph(job).edges}
    return {
        name: Boundary(name, side(edge.source), side(edge.destination))
        for name, edge in edges.items()
    }


def job_graph(job: JobConfig) -> ModuleGraph:
    """Return the module graph as schedules see it."""
    placement = job_placement(job)
    nodes = {}
    for name, module in job.modules.items():
        places = placement.module_places(name)
        lanes = module_grid(job, name).groups("tp", "cp")
        nodes[name] = ModuleNode(
            name,
            module.group,
            tuple(tuple(places[rank] for rank in lane) for lane in lanes),
            module.trainable,
        )
    return ModuleGraph(nodes, tuple(Edge(name, LANGUAGE) for name in job.encoders))
