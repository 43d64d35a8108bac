"""What goes together: all combinations of modules' options in some groups, in columns. Pure.

There are hundreds of thousands for large jobs, so a column holds a number of all combinations.
How long a step takes is linear in the encoders' costs but for one comparison, and so the columns
serve every ratio of the encoders' costs to the LLM's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from disagg_train.config.base import divisors
from disagg_train.config.job import LANGUAGE
from disagg_train.planner.candidates import Candidate, Team
from disagg_train.planner.options import Option
from disagg_train.planner.sample_costs import Floats, Ints
from disagg_train.planner.shapes import Shape

_HALF_FILL = 0.5
"""Part of the pipeline's fill that remains with split backwards."""

_Kind = tuple[Shape, int]
"""A shape, and how many microbatches are taken at once."""

Choices = Mapping[str, Sequence[Option]]
"""The options of every module, in the order of the groups."""


class Block:
    """The combinations that fit, with so many microbatches and one schedule.

    Args:
        teams: the groups.
        choices: what every module may be.
        microbatches: of a step.
        schedule: of the LLM's passes.
        room: bytes of each group's GPUs.
    """

    def __init__(
        self,
        teams: tuple[Team, ...],
        choices: Choices,
        microbatches: int,
        schedule: str,
        room: Sequence[float],
    ) -> None:
        self.choices, self._teams = choices, teams
        self._microbatches, self._schedule = microbatches, schedule
        window = _Axes(choices).windows(teams, microbatches, schedule, room)
        self._sizes = tuple(len(options) for options in choices.values())
        self._fitting = np.flatnonzero(window)
        self._window = window.ravel()[self._fitting]
        columns = _step_columns(teams, choices, microbatches, schedule)
        self._columns = {
            name: np.broadcast_to(column, window.shape).ravel()[self._fitting]
            for name, column in columns.items()
        }

    def __len__(self) -> int:
        return len(self._fitting)

    def steps_s(self, stretch: float) -> Floats:
        """Return about how long a step of each combination takes.

        The busiest group's seconds, and what a microbatch takes before and after on its way
        through the rest of the pipeline.

        Args:
            stretch: encoders are taken to cost so many times as much.
        """
        own = self._columns
        home_s = stretch * own["encoders_at_home"] + own["language"]
        others_s = stretch * own["encoders_apart"]
        passing_s = np.where(
            home_s >= others_s,
            stretch * own["before"],
            own["language"] / self._microbatches,
        )
        fill_s = own["language_fill"] + stretch * own["encoders_fill"]
        steps_s: Floats = (
            np.maximum(home_s, others_s) + fill_s * self._microbatches / self._window + passing_s
        )
        return steps_s

    def keys(self, numbers: Mapping[str, Mapping[_Kind, int]]) -> Ints:
        """Return a number of each combination, the same for the same shapes and runs.

        Args:
            numbers: of the shapes and runs of each module.
        """
        found = np.zeros(len(self), np.int64)
        for name, at in self._chosen(self._fitting).items():
            own = [numbers[name][each.shape, each.run] for each in self.choices[name]]
            found = found * len(numbers[name]) + np.array(own, np.int64)[at]
        return found

    def candidate(self, index: int) -> Candidate:
        """Return one of the combinations."""
        chosen = self._chosen(self._fitting[index])
        options = {name: self.choices[name][int(at)] for name, at in chosen.items()}
        return Candidate(
            self._teams,
            {name: each.shape for name, each in options.items()},
            self._microbatches,
            int(self._window[index]),
            self._schedule,
            max(each.run for each in options.values()) - 1,
        )

    def _chosen(self, places: Ints) -> dict[str, Ints]:
        return dict(zip(self.choices, np.unravel_index(places, self._sizes), strict=True))


@dataclass(frozen=True)
class Combinations:
    """The combinations of some groups, with all numbers of microbatches and schedules.

    Args:
        blocks: by these.
        keys: of all combinations, one after the other; the same for the same shapes and runs.
    """

    blocks: Sequence[Block]
    keys: Ints

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> "Combinations":
        """Return the combinations of some blocks, all of the same groups."""
        numbers: dict[str, dict[_Kind, int]] = {}
        for block in blocks:
            for name, options in block.choices.items():
                known = numbers.setdefault(name, {})
                for option in options:
                    known.setdefault((option.shape, option.run), len(known))
        assert prod(map(len, numbers.values())) < 2**63, "too many combinations for their numbers"
        return cls(blocks, np.concatenate([block.keys(numbers) for block in blocks]))

    def quickest(self, stretch: float) -> tuple[Floats, Ints]:
        """Return the quickest of each key: seconds of a step, and the number among all."""
        steps_s = np.concatenate([block.steps_s(stretch) for block in self.blocks])
        order = np.argsort(steps_s, kind="stable")
        _, first = np.unique(self.keys[order], return_index=True)
        found = order[first]
        return steps_s[found], found

    def candidate(self, number: int) -> Candidate:
        """Return one of the combinations."""
        for block in self.blocks:
            if number < len(block):
                return block.candidate(number)
            number -= len(block)
        raise IndexError(number)


class _Axes:
    """Numbers of options as arrays that broadcast against each other: a module is an axis."""

    def __init__(self, choices: Choices) -> None:
        self._options = choices
        self._axis = {name: axis for axis, name in enumerate(choices)}

    def of(self, name: str, values: Sequence[float]) -> Floats:
        """Return numbers of a module's options."""
        shape = [1] * len(self._axis)
        shape[self._axis[name]] = -1
        return np.array(values, np.float64).reshape(shape)

    def column(self, name: str, number: str) -> Floats:
        """Return a number that options say."""
        return self.of(name, [getattr(option, number) for option in self._options[name]])

    def total(self, names: Sequence[str], number: str) -> Floats:
        """Return its sum over some modules."""
        start: Floats = np.zeros([1] * len(self._axis))
        return sum((self.column(name, number) for name in names), start)

    def windows(
        self, teams: Sequence[Team], microbatches: int, schedule: str, room: Sequence[float]
    ) -> Ints:
        """Return the largest window that fits; 0 where even a group's least does not."""
        sizes = [len(options) for options in self._options.values()]
        window = np.full(sizes, microbatches, np.int64)
        fits = np.ones(sizes, np.bool_)
        span = self._most(self._options, "run") - 1
        for team, memory in zip(teams, room, strict=True):
            encoders = [name for name in team.modules if name != LANGUAGE]
            free = memory - self.total(team.modules, "state_bytes")
            free = free - self._most(team.modules, "passing_bytes")  # ranks run one op at a time
            if LANGUAGE in team.modules:
                free = free - self._language_bytes(microbatches, schedule)
                a_window = self.total(encoders, "activation_bytes")
                tight = a_window * microbatches > free
                smaller = self._largest(free, a_window, microbatches, self._units(encoders))
                window = np.where(tight, smaller, window)
            else:
                free = free - sum(self._ahead_bytes(n, microbatches, span) for n in encoders)
            fits &= free >= 0
        windows: Ints = np.where(fits, window, 0)
        return windows

    def _most(self, names: Iterable[str], number: str) -> Floats:
        """Return the largest of what some modules' options say."""
        most = self.total((), number)
        for name in names:
            most = np.maximum(most, self.column(name, number))
        return most

    def _language_bytes(self, microbatches: int, schedule: str) -> Floats:
        held = [
            each.activation_bytes * in_flight(each, microbatches, schedule)
            for each in self._options[LANGUAGE]
        ]
        return self.of(LANGUAGE, held)

    def _ahead_bytes(self, name: str, microbatches: int, span: Floats) -> Floats:
        """Return what an encoder on ranks of its own holds until its gradients come."""
        after = self.of(LANGUAGE, [each.shape.pp for each in self._options[LANGUAGE]])
        own = self.of(name, [each.shape.pp for each in self._options[name]])
        return self.column(name, "activation_bytes") * np.minimum(microbatches, own + after + span)

    def _units(self, encoders: Sequence[str]) -> Ints:
        """Return what windows are multiples of."""
        interleaved = [o.shape.pp if o.shape.vpp > 1 else 1 for o in self._options[LANGUAGE]]
        units = self.of(LANGUAGE, interleaved).astype(np.int64)
        for name in encoders:
            units = np.lcm(units, self.column(name, "run").astype(np.int64))
        return units

    def _largest(self, free: Floats, a_window: Floats, microbatches: int, units: Ints) -> Ints:
        """Return the largest windows that fit; 0 where there are none."""
        most = np.maximum(free, 0.0) / np.maximum(a_window, 1.0)
        found = np.zeros(np.broadcast_shapes(most.shape, units.shape), np.int64)
        for unit in np.unique(units):
            windows = np.array([0, *(w for w in divisors(microbatches) if w % unit == 0)])
            largest = windows[np.searchsorted(windows, most, "right") - 1]
            found = np.where(units == unit, largest, found)
        return found


def _step_columns(
    teams: Sequence[Team], choices: Choices, microbatches: int, schedule: str
) -> dict[str, Floats]:
    """Return the seconds that make up a step, by what they are."""
    axes = _Axes(choices)
    fill = _HALF_FILL if schedule == "zero_bubble" else 1.0
    columns = {
        "language": axes.column(LANGUAGE, "busy_s"),
        "language_fill": fill * axes.column(LANGUAGE, "fill_s"),
        "encoders_apart": axes.total((), "busy_s"),
        "before": axes.total((), "busy_s"),
    }
    for team in teams:
        encoders = [name for name in team.modules if name != LANGUAGE]
        busy_s, through_s = axes.total(encoders, "busy_s"), axes.total(encoders, "fill_s")
        if LANGUAGE in team.modules:
            columns |= {"encoders_at_home": busy_s, "encoders_fill": through_s}
        else:
            apart = {"encoders_apart": busy_s, "before": busy_s / microbatches + through_s}
            columns |= {what: np.maximum(columns[what], each) for what, each in apart.items()}
    return columns


def in_flight(language: Option, microbatches: int, schedule: str) -> float:
    """Return how many microbatches the LLM's first rank holds at most."""
    pp, vpp = language.shape.pp, language.shape.vpp
    if schedule == "zero_bubble" or vpp == 1:
        return min(microbatches, pp)
    return min(microbatches, pp + (pp - 1) / vpp)
