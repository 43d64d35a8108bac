"""What a job file says about ranks: placement, grids, edges, and the stage graph. Pure."""

from disagg_train.boundary.layouts import Side
from disagg_train.boundary.step_exchanges import Boundary, RankEdge, StageLink
from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.config.modules import EncoderModule, GptModule, TransformerModule
from disagg_train.planner.deferral import reach_of
from disagg_train.schedule.graph import Edge, StageGraph, StageNode
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


def module_side(job: JobConfig, name: str) -> Side:
    """Return a module's ranks and how its tokens are cut over them."""
    module = job.modules[name]
    return Side(
        name,
        module_grid(job, name),
        job_placement(job).module_places(name),
        module.parallel.sequence_parallel,
        packed=module.packed if isinstance(module, GptModule) else True,
        equal_lanes=module.parallel.ep > 1,
        vpp=module.parallel.vpp,
        extra_tokens=_class_tokens(module),
    )


def _class_tokens(module: EncoderModule | GptModule) -> int:
    return module.model.num_class_tokens if isinstance(module, TransformerModule) else 0


def job_edges(job: JobConfig) -> dict[str, RankEdge]:
    """Return every boundary and stage link by name, modules in the order of the job file."""
    edges: list[RankEdge] = []
    for name, module in job.modules.items():
        side = module_side(job, name)
        merge = module.projector.merge if isinstance(module, EncoderModule) else None
        edges += [StageLink(side, stage, merge) for stage in range(side.num_stages - 1)]
        if name != LANGUAGE:
            boundary = f"{name}->{LANGUAGE}"
            language = module_side(job, LANGUAGE)
            edges.append(Boundary(boundary, side, language, reach_of(job, name)))
    return {edge.name: edge for edge in edges}


def job_graph(job: JobConfig) -> StageGraph:
    """Return the stage graph as schedules see it."""
    nodes = {}
    for name, module in job.modules.items():
        side = module_side(job, name)
        lanes = side.grid.groups("tp", "cp", *(["dp"] if module.parallel.ep > 1 else []))
        for stage in range(side.num_stages):
            ranks = set(side.grid.stage(stage % side.grid.pp))
            node = side.stage_name(stage)
            nodes[node] = StageNode(
                node,
                module.group,
                tuple(tuple(side.places[r] for r in lane) for lane in lanes if lane[0] in ranks),
                _trains(module, stage),
            )
    edges = tuple(
        Edge(edge.source_stage, edge.destination_stage, edge.name, edge.reach)
        for edge in job_edges(job).values()
    )
    return StageGraph(nodes, edges, _tied_stages(job))


def _tied_stages(job: JobConfig) -> tuple[str, ...]:
    """Return the LLM's stages that hold a copy each of one embedding."""
    side = module_side(job, LANGUAGE)
    ties = job.language.model.tie_embeddings and job.language.trainable
    return (side.stage_name(0), side.stage_name(-1)) if ties and side.num_stages > 1 else ()


def _trains(module: EncoderModule | GptModule, stage: int) -> bool:
    """Whether any weight of a stage is trained; the projector is on an encoder's last one."""
    if isinstance(module, EncoderModule) and stage < module.parallel.pp - 1:
        return not module.freezes_all
    return module.trainable
