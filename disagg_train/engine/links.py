"""Opens this rank's ends of its boundaries: a communicator per direction."""

from collections.abc import Mapping

import torch

from disagg_train.boundary.communicator import Communicator
from disagg_train.boundary.gloo import GlooGroup, GlooTransport
from disagg_train.boundary.layouts import Side
from disagg_train.boundary.step_exchanges import Boundary
from disagg_train.config.job import JobConfig
from disagg_train.engine.world import World


class Link:
    """A boundary on one rank.

    Args:
        boundary: the edge and its sides.
        forward: carries activations.
        backward: carries gradients.
        carries_gradient: whether the source has anything to train.
    """

    def __init__(
        self,
        boundary: Boundary,
        forward: Communicator,
        backward: Communicator,
        carries_gradient: bool,
    ) -> None:
        self.boundary, self.forward, self.backward = boundary, forward, backward
        self.carries_gradient = carries_gradient

    def close(self) -> None:
        """Leave both directions."""
        self.forward.close()
        self.backward.close()


def open_links(
    job: JobConfig, world: World, boundaries: Mapping[str, Boundary], device: torch.device
) -> dict[str, Link]:
    """Join the boundaries that this rank is part of; every rank does so in the same order."""
    return {
        name: _open(job, world, boundary, device)
        for name, boundary in boundaries.items()
        if world.place in boundary.places
    }


def _open(job: JobConfig, world: World, boundary: Boundary, device: torch.device) -> Link:
    width = job.language.model.hidden_size

    def communicator(direction: str, receiver: Side) -> Communicator:
        name = f"{boundary.name}/{direction}"
        transport = GlooTransport(world.join(name, boundary.places))
        replicas = _replicas(world, name, receiver)
        return Communicator(name, transport, width, device, replicas)

    return Link(
        boundary,
        communicator("forward", boundary.destination),
        communicator("backward", boundary.source),
        job.encoders[boundary.source.module].trainable,
    )


def _replicas(world: World, name: str, side: Side) -> GlooGroup | None:
    """Join the ranks of a side that receive the same rows as this one."""
    stage = side.grid.stage(0)
    for group in side.replicas():
        places = tuple(side.places[stage[index]] for index in group)
        if world.place in places and len(places) > 1:
            return world.join(f"{name}/replicas/{places[0]}", places)
    return None
