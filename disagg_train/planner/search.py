"""Which layouts of a job are worth simulating: all are ranked by a rough estimate. Pure.

A step takes as long as the busiest group's ranks, and what passes before and after it on the way
through the pipeline. Shapes of a module that another one beats in time and memory are left out
first, so that what is left can be combined; sizes of groups are tried around the even split.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from disagg_train.config.base import divisors
from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.planner.candidates import Candidate, Placement, Pool, Team, partitions
from disagg_train.planner.combinations import Block, Choices, Combinations
from disagg_train.planner.module_options import ModuleOptions
from disagg_train.planner.options import Option
from disagg_train.planner.shapes import Shape

_FEW_RANKS = 16
_SIZES = {2: (0.35, 0.5, 0.65, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 2.8), 3: (0.6, 0.8, 1.0, 1.3)}
"""Sizes of an encoders' group, in even splits, by the number of groups."""
_UNITS = (8, 16, 32, 64, 128)
_MOST_COUNTS = 12


@dataclass(frozen=True)
class Ranked:
    """A candidate with its rough estimate.

    Args:
        candidate: the candidate.
        step_s: seconds of a step.
    """

    candidate: Candidate
    step_s: float


class Search:
    """All layouts of one job on some GPUs.

    Args:
        job: the job.
        pools: the GPUs.
        options: of its modules.
    """

    def __init__(self, job: JobConfig, pools: Sequence[Pool], options: ModuleOptions) -> None:
        self._job, self._options = job, options
        self._pools = {pool.kind: pool for pool in pools}

    def ranked(
        self, stretch: float = 1.0, most: int | None = None
    ) -> dict[Placement, list[Ranked]]:
        """Return candidates that seem to fit, by placement, the quickest first.

        Args:
            stretch: encoders are taken to cost so many times as much.
            most: of a placement; None for all.
        """
        return {
            placement: _quickest(found, stretch, most) for placement, found in self._found.items()
        }

    @cached_property
    def _found(self) -> dict[Placement, list[Combinations]]:
        """All combinations, by placement."""
        counts = self._counts()
        placements: dict[Placement, list[Combinations]] = {}
        for teams in self._teams():
            choices = [(count, self._choices(teams, count)) for count in counts]
            found = self._combined(teams, choices)
            if found is not None:
                placement = found.candidate(0).placement
                placements.setdefault(placement, []).append(found)
        return placements

    def homogeneous(self) -> list[Ranked]:
        """Return candidates whose encoders are cut as the LLM is, the quickest first.

        Encoders take over its tp and cp, and its pp where their layers divide by it.
        """
        found = []
        for pool in self._pools.values():
            team = Team(tuple(self._job.modules), pool.count, pool.kind)
            choices = [
                (count, {name: [(alike | {LANGUAGE: language})[name]] for name in team.modules})
                for count in self._counts()
                for language in self._options.of(LANGUAGE, pool, pool.count, count, False)
                if (alike := self._alike(language, pool, count)) is not None
            ]
            found.append(self._combined((team,), choices))
        return _quickest([each for each in found if each is not None], 1.0, None)

    def _alike(self, language: Option, pool: Pool, microbatches: int) -> dict[str, Option] | None:
        found = {}
        for name in self._job.encoders:
            made = None
            for pp in (language.shape.pp, 1):
                shape = Shape(language.shape.tp, language.shape.cp, pp)
                if self._cuts(name, shape):
                    made = made or self._quickest_run(name, pool, shape, microbatches)
            if made is None:
                return None
            found[name] = made
        return found

    def _quickest_run(
        self, name: str, pool: Pool, shape: Shape, microbatches: int
    ) -> Option | None:
        """Return a shape's option of colocated encoders, with the run that is quickest."""
        dp = pool.count // shape.num_ranks
        runs = self._options.runs(dp, microbatches, self._balances_encoders)
        made = (self._options.option(name, pool, shape, dp, microbatches, run) for run in runs)
        fitting = [each for each in made if each is not None]
        return min(fitting, key=lambda each: (each.busy_s, each.run), default=None)

    def _cuts(self, name: str, shape: Shape) -> bool:
        model: Any = getattr(self._job.modules[name], "model", None)
        if model is None:
            return True
        sizes = model.num_attention_heads, model.ffn_size
        whole = all(size % shape.tp == 0 for size in sizes)
        return whole and model.num_layers_run % shape.pp == 0

    # Microbatches and groups.

    def _counts(self) -> list[int]:
        """Return numbers of microbatches to try: divisors of the batch, spread evenly."""
        train = self._job.train
        found = divisors(train.global_batch)
        step = -(-len(found) // _MOST_COUNTS)
        return sorted({*found[::step], train.microbatches})

    def _teams(self) -> Iterator[tuple[Team, ...]]:
        """Return all ways to group the modules and to give the groups ranks."""
        for groups in partitions(list(self._job.modules)):
            for kinds in product(self._pools, repeat=len(groups)):
                per_kind = []
                for kind in dict.fromkeys(kinds):
                    inside = [g for g, own in zip(groups, kinds, strict=True) if own == kind]
                    per_kind.append(list(self._splits(inside, self._pools[kind])))
                for parts in product(*per_kind):
                    yield tuple(team for part in parts for team in part)

    def _splits(self, groups: Sequence[tuple[str, ...]], pool: Pool) -> Iterator[list[Team]]:
        """Return ways to share a pool's GPUs among groups; the last takes what is left."""
        if len(groups) == 1:
            yield [Team(groups[0], pool.count, pool.kind)]
            return
        work_s = [sum(self._options.work_s(name, pool) for name in group) for group in groups]
        even = [pool.count * each / (sum(work_s) or 1.0) for each in work_s]
        for sizes in product(*(_sizes(pool.count, each, len(groups)) for each in even[:-1])):
            if (rest := pool.count - sum(sizes)) > 0:
                counts = (*sizes, rest)
                yield [Team(g, n, pool.kind) for g, n in zip(groups, counts, strict=True)]

    # What goes together.

    def _choices(self, teams: tuple[Team, ...], microbatches: int) -> Choices:
        return {
            name: self._options.of(
                name,
                self._pools[team.gpu_kind],
                team.ranks,
                microbatches,
                self._gathers(name, team),
            )
            for team in teams
            for name in team.modules
        }

    def _gathers(self, name: str, team: Team) -> bool:
        """Whether a module may take the samples of several microbatches at once."""
        return self._balances_encoders and name != LANGUAGE and LANGUAGE in team.modules

    @property
    def _balances_encoders(self) -> bool:
        return self._job.train.balance in {"encoder", "both"}

    def _combined(
        self, teams: tuple[Team, ...], choices: Iterable[tuple[int, Choices]]
    ) -> Combinations | None:
        """Return what fits, with its schedules; None where nothing does.

        Args:
            teams: the groups.
            choices: numbers of microbatches, and what every module may be then.
        """
        room = [self._pools[team.gpu_kind].memory_bytes for team in teams]
        blocks = [
            Block(teams, scheduled, microbatches, schedule, room)
            for microbatches, options in choices
            for schedule, scheduled in self._scheduled(options)
            if all(scheduled.values())
        ]
        blocks = [block for block in blocks if len(block)]
        return Combinations.of(blocks) if blocks else None

    def _scheduled(self, choices: Choices) -> Iterator[tuple[str, Choices]]:
        """Return the schedules that there are, each with what modules may be in it."""
        yield "1f1b", choices
        if self._job.language.trainable:
            split = [o for o in choices[LANGUAGE] if o.shape.pp > 1 and o.shape.vpp == 1]
            yield "zero_bubble", {**choices, LANGUAGE: split}


def _quickest(
    combinations: Sequence[Combinations], stretch: float, most: int | None
) -> list[Ranked]:
    """Return the candidates of all layouts, the quickest first."""
    found = [each.quickest(stretch) for each in combinations]
    owner = np.repeat(np.arange(len(found)), [len(steps_s) for steps_s, _ in found])
    steps_s = np.concatenate([each for each, _ in found] or [np.empty(0)])
    numbers = np.concatenate([each for _, each in found] or [np.empty(0, np.int64)])
    order = np.argsort(steps_s, kind="stable")[:most]
    return [
        Ranked(combinations[owner[at]].candidate(int(numbers[at])), float(steps_s[at]))
        for at in order.tolist()
    ]


def _sizes(total: int, even: float, num_groups: int) -> list[int]:
    """Return sizes of one group to try: all where there are few ranks, else whole nodes."""
    if total <= _FEW_RANKS:
        return list(range(1, total))
    found = set()
    for part in _SIZES[min(num_groups, max(_SIZES))]:
        for unit in _UNITS:
            wanted = even * part
            found |= {_near(wanted, unit), total - _near(total - wanted, unit)}
    return sorted(size for size in found if 0 < size < total)


def _near(number: float, unit: int) -> int:
    return round(number / unit) * unit
