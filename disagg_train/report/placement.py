"""The module graph with its placement, as the page shows it: groups, modules, ranks, boundaries."""

from collections.abc import Sequence
from dataclasses import dataclass

from disagg_train.boundary.of_job import job_placement, module_grid
from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.config.modules import CustomModule, GptModule
from disagg_train.topology.grid import Grid
from disagg_train.topology.placement import Placement

_AXES = ("tp", "cp", "pp", "vpp", "dp", "ep")


@dataclass(frozen=True)
class RankSeat:
    """A rank of a module: its global number, and where it stands on each axis, in words."""

    place: int
    text: str


@dataclass(frozen=True)
class ModuleCard:
    """A module.

    Args:
        name: of the module.
        facts: what it is, in words.
        degrees: of its parallelism, by axis.
        ranks: that host it.
    """

    name: str
    facts: Sequence[str]
    degrees: Sequence[tuple[str, int]]
    ranks: Sequence[RankSeat]


@dataclass(frozen=True)
class GroupCard:
    """An actor group.

    Args:
        name: of the group.
        ranks: how many, and on what, in words.
        modules: that it hosts.
        feeds: modules of the group whose tokens go to the LLM on other ranks.
    """

    name: str
    ranks: str
    modules: Sequence[ModuleCard]
    feeds: Sequence[str]


def group_cards(job: JobConfig) -> list[GroupCard]:
    """Return a job's groups, the LLM's last."""
    placement, language = job_placement(job), job.language.group
    names = sorted(job.groups, key=lambda name: name == language)
    return [_group(job, placement, name) for name in names]


def _group(job: JobConfig, placement: Placement, name: str) -> GroupCard:
    group, modules = job.groups[name], placement.modules_on(name)
    count = f"{group.ranks} rank" + "s" * (group.ranks > 1)
    kind = f" on {group.accelerator}" if group.accelerator else ""
    feeds = () if name == job.language.group else modules
    return GroupCard(name, count + kind, [_module(job, placement, m) for m in modules], feeds)


def _module(job: JobConfig, placement: Placement, name: str) -> ModuleCard:
    module, grid = job.modules[name], module_grid(job, name)
    seats = [
        RankSeat(place, _position(grid, rank))
        for rank, place in enumerate(placement.module_places(name))
    ]
    degrees = [(axis, getattr(module.parallel, axis)) for axis in _AXES]
    shown = [(axis, n) for axis, n in degrees if axis != "vpp" or n > 1]
    return ModuleCard(name, _facts(job, name), shown, seats)


def _position(grid: Grid, rank: int) -> str:
    at = grid.coordinates(rank)
    return ", ".join(f"{axis} {at[axis]}" for axis in grid.order)


def _facts(job: JobConfig, name: str) -> list[str]:
    module = job.modules[name]
    facts = ["LLM" if name == LANGUAGE else "encoder", module.kind]
    if not isinstance(module, CustomModule):
        facts.append(f"{module.model.num_layers} layers, {module.model.hidden_size} wide")
    if isinstance(module, GptModule) and module.model.num_experts:
        facts.append(f"{module.model.num_experts} experts")
    if not module.trainable:
        facts.append("frozen")
    if module.lora is not None:
        facts.append("LoRA")
    return facts
