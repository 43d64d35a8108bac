"""A way to lay a job out over GPUs: groups, layouts, microbatches, schedule. Pure."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from pydantic import ValidationError

from disagg_train.config.groups import GroupConfig
from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.planner.shapes import Shape

Placement = Literal["colocated", "disjoint", "mixed"]

_JOINT = "+"


@dataclass(frozen=True)
class Pool:
    """GPUs of one kind.

    Args:
        count: how many.
        memory_bytes: that a plan may use of each.
        ranks_per_node: that share a node.
        kind: None where nobody named it.
    """

    count: int
    memory_bytes: float = inf
    ranks_per_node: int = 8
    kind: str | None = None


@dataclass(frozen=True)
class Team:
    """Modules that share their ranks.

    Args:
        modules: their names, in the order of the job file.
        ranks: how many they share.
        gpu_kind: what these are; None where all are of one kind that nobody named.
    """

    modules: tuple[str, ...]
    ranks: int
    gpu_kind: str | None = None

    @property
    def name(self) -> str:
        """Name of the group."""
        return _JOINT.join(self.modules)


@dataclass(frozen=True)
class Candidate:
    """A way to lay a job out.

    Args:
        teams: the groups; every module is in one.
        shapes: of all modules, by name.
        microbatches: of a step.
        window: microbatches per window of encoders colocated with the LLM.
        schedule: of the LLM's passes.
        span: microbatches by which samples may be put off.
    """

    teams: tuple[Team, ...]
    shapes: Mapping[str, Shape]
    microbatches: int
    window: int
    schedule: str = "1f1b"
    span: int = 0

    @property
    def placement(self) -> Placement:
        """Whether modules share their ranks: all, none, or some."""
        if len(self.teams) == 1:
            return "colocated"
        return "disjoint" if all(len(team.modules) == 1 for team in self.teams) else "mixed"

    @property
    def layout(self) -> Hashable:
        """Groups and shapes, without microbatches and schedule."""
        return self.teams, tuple(sorted(self.shapes.items()))

    @property
    def key(self) -> Hashable:
        """All that tells candidates apart."""
        return self.layout, self.microbatches, self.window, self.schedule, self.span

    def dp(self, module: str) -> int:
        """Return how many replicas a module has."""
        return self.team_of(module).ranks // self.shapes[module].num_ranks

    def team_of(self, module: str) -> Team:
        """Return the group that hosts a module."""
        return next(team for team in self.teams if module in team.modules)

    def unchecked(self, job: JobConfig) -> JobConfig:
        """Return the job laid out so, without a look at its rules; quick."""
        modules = {
            name: self.shapes[name]
            .of(module, self.dp(name))
            .model_copy(update={"group": self.team_of(name).name})
            for name, module in job.modules.items()
        }
        groups = {team.name: _group(job, team) for team in self.teams}
        train = job.train.model_copy(update=self._train(job))
        changes: dict[str, Any] = {"groups": groups, "modules": modules, "train": train}
        changes["plan"] = None  # another layout's
        return job.model_copy(update=changes)

    def _train(self, job: JobConfig) -> dict[str, Any]:
        changes: dict[str, Any] = {
            "microbatches": self.microbatches,
            "window": self.window if self.window < self.microbatches else None,
            "schedule": self.schedule,
            "deferral_span": self.span,
        }
        if (tokens := job.train.tokens_per_microbatch) is not None:
            lanes = job.train.microbatches * job.language.parallel.dp
            now = self.microbatches * self.dp(LANGUAGE)
            changes["tokens_per_microbatch"] = -(-tokens * lanes // now)
        return changes

    def content(self, job: JobConfig) -> dict[str, Any]:
        """Return the job file of a job that is laid out so: what it says, and what changes."""
        content = job.model_dump(mode="json", exclude_unset=True)
        laid_out = self.unchecked(job)
        content["groups"] = {
            name: group.model_dump(mode="json", exclude_defaults=True)
            for name, group in laid_out.groups.items()
        }
        for name, module in laid_out.modules.items():
            own = content["modules"][name]
            own["group"] = module.group
            own["parallel"] = module.parallel.model_dump(exclude_defaults=True)
            own["recompute"] = module.recompute
        content["train"] |= self._train(job)
        content.pop("plan", None)
        return content

    def job(self, job: JobConfig) -> JobConfig | None:
        """Return the job laid out so; None where that breaks one of its rules."""
        try:
            return JobConfig.model_validate(self.content(job))
        except ValidationError:
            return None


def partitions(names: Sequence[str]) -> Iterator[tuple[tuple[str, ...], ...]]:
    """Return every way to put modules into groups, each once."""
    if not names:
        yield ()
        return
    first, rest = names[0], names[1:]
    for smaller in partitions(rest):
        yield ((first,), *smaller)
        for at, group in enumerate(smaller):
            yield (*smaller[:at], (first, *group), *smaller[at + 1 :])


def _group(job: JobConfig, team: Team) -> GroupConfig:
    """Return a group's config; what else it says is taken over from the group of a module."""
    own = job.groups[job.modules[team.modules[0]].group]
    changes: dict[str, Any] = {"ranks": team.ranks}
    if team.gpu_kind is not None:
        changes["accelerator"] = team.gpu_kind
    return own.model_copy(update=changes)
