"""Opens this rank's ends of the job's edges: a communicator per direction."""

from collections.abc import Mapping

import torch

from disagg_train.boundary.communicator import Communicator
from disagg_train.boundary.step_exchanges import RankEdge, StageLink, edge_places
from disagg_train.config.job import JobConfig
from disagg_train.config.modules import GptModule, TransformerModule
from disagg_train.engine.world import World
from disagg_train.modules.batch import PREVIOUS_STAGE
from disagg_train.modules.specs import DTYPES
from disagg_train.schedule.graph import StageGraph


class Link:
    """An edge on one rank.

    Args:
        edge: a boundary or a stage link.
        forward: carries activations.
        backward: carries gradients.
        carries_gradient: whether anything at or before the source is trained.
    """

    def __init__(
        self,
        edge: RankEdge,
        forward: Communicator,
        backward: Communicator,
        carries_gradient: bool,
    ) -> None:
        self.edge, self.forward, self.backward = edge, forward, backward
        self.carries_gradient = carries_gradient

    @property
    def input_name(self) -> str:
        """Name under which the destination's model finds the rows."""
        return PREVIOUS_STAGE if isinstance(self.edge, StageLink) else self.edge.source.module

    def close(self) -> None:
        """Leave both directions."""
        self.forward.close()
        self.backward.close()


def open_links(
    job: JobConfig,
    world: World,
    edges: Mapping[str, RankEdge],
    graph: StageGraph,
    device: torch.device,
    own_widths: Mapping[str, int],
) -> dict[str, Link]:
    """Join the edges that this rank is part of; every rank does so in the same order.

    Args:
        job: the job.
        world: this rank's.
        edges: all of the job's.
        graph: the job's stages.
        device: where rows go.
        own_widths: of the rows between the stages of encoders of one's own, by module.
    """
    return {
        name: _open(
            world,
            edge,
            graph.runs_backward(edge.source_stage),
            device,
            own_widths.get(edge.destination.module) or _row_width(job, edge.destination.module),
            DTYPES[job.train.precision],
        )
        for name, edge in edges.items()
        if world.place in edge_places(edge)
    }


def _open(
    world: World,
    edge: RankEdge,
    carries_gradient: bool,
    device: torch.device,
    width: int,
    dtype: torch.dtype,
) -> Link:
    def communicator(direction: str, gradients: bool) -> Communicator:
        name = f"{edge.name}/{direction}"
        transport = world.transport(name, edge_places(edge), _peers(edge, world.place))
        alike = edge.replicas_of(world.place, gradients)
        replicas = world.transport(f"{name}/replicas/{alike[0]}", alike) if alike else None
        return Communicator(name, transport, width, device, replicas, dtype)

    return Link(
        edge,
        communicator("forward", gradients=False),
        communicator("backward", gradients=True),
        carries_gradient,
    )


def _row_width(job: JobConfig, module: str) -> int:
    """Return the width of the rows that a module's stages are handed."""
    found = job.modules[module]
    assert isinstance(found, TransformerModule | GptModule), f"{found.kind} has no known width"
    return found.model.hidden_size


def _peers(edge: RankEdge, place: int) -> tuple[int, ...]:
    """Return whom a rank may exchange with: the side that it is not on, or both."""
    source, destination = edge.source_places, edge.destination_places
    found = set(destination) if place in source else set()
    if place in destination:
        found |= set(source)
    return tuple(sorted(found - {place}))
