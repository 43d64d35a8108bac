"""What a profile runs: a job in several degrees, on microbatches of many sizes. Pure.

A trial keeps the ranks of the job's groups, and gives dp what tp, cp and pp leave. Its microbatches
hold real samples: for each module short to long ones, few and many at a time, so that tokens and
squares can be told apart.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice, product
from math import lcm
from typing import Any

import numpy as np

from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.config.modules import CustomModule
from disagg_train.errors import ConfigError, DataError
from disagg_train.planner.in_order import token_budget
from disagg_train.planner.sample_costs import Floats, SampleTable
from disagg_train.planner.step_plan import Assignment, SampleSize, StepPlan

_AXES = ("tp", "cp", "pp", "vpp", "ep")
_NUM_SIZES, _REPEATS = 5, 5
_ENDS = (5.0, 95.0)
"""Percentiles of the data between which sizes are taken."""
_MOST_DRAWN = 4096
_MOST_WORK = 1.5
"""Most tokens of a lane, over those of the job's mean lane: memory was planned for about that."""
_FEW = 4
_COUNTED = 3
"""Steps that are traced: ranks count activations then, and wait for all of a GPU's work."""
_WARM_UP = 1 + _COUNTED
"""Steps before those that are timed; the first one is slow, as everything is new to it."""

Degrees = Mapping[str, Sequence[Mapping[str, int]]]
"""Per module, degrees to measure; what they do not name is as in the job."""


def parse_degrees(texts: Sequence[str]) -> dict[str, list[dict[str, int]]]:
    """Return the degrees that ``module:tp=1,2:pp=1,2`` texts ask for: all combinations of each.

    Raises:
        ConfigError: a text is not of that form.
    """
    found: dict[str, list[dict[str, int]]] = {}
    for text in texts:
        module, *axes = text.split(":")
        values = dict(map(_parse_axis, axes))
        if not axes or "" in values:
            raise ConfigError(
                f"degrees {text!r} are not of the form MODULE:AXIS=N,N:AXIS=N; axes are "
                f"{list(_AXES)}, as in language:tp=1,2:pp=1,2"
            )
        combined = product(*values.values())
        found.setdefault(module, []).extend(
            dict(zip(values, each, strict=True)) for each in combined
        )
    return found


def _parse_axis(text: str) -> tuple[str, list[int]]:
    axis, _, numbers = text.partition("=")
    counts = numbers.split(",")
    if axis not in _AXES or not all(count.isdecimal() and int(count) for count in counts):
        return "", []
    return axis, [int(count) for count in counts]


def trial_jobs(job: JobConfig, degrees: Degrees) -> list[JobConfig]:
    """Return the job once for every degrees that a module is to be measured in.

    One run measures all modules; those with fewer degrees to measure begin again with the first.

    Args:
        job: the job.
        degrees: to measure; a module that is not named keeps its own.

    Raises:
        ConfigError: there is no such module, or degrees do not fit it or its group.
    """
    if unknown := sorted(set(degrees) - set(job.modules)):
        raise ConfigError(f"degrees of {unknown}; the job's modules are {sorted(job.modules)}")
    count = max((len(each) for each in degrees.values()), default=1)
    trials = []
    for at in range(count):
        chosen = {name: each[at % len(each)] for name, each in degrees.items()}
        modules = {name: _cut(job, name, chosen.get(name, {})) for name in job.modules}
        changed = job.model_copy(
            update={"modules": modules, "train": _plain_training(job), "fallback": None}
        )
        trials.append(load_job(changed.model_dump()))
    return trials


def _plain_training(job: JobConfig) -> Any:
    """Return the training without what a trial does for itself, or does not do."""
    evaluation = job.train.evaluation.model_copy(update={"samples": 0})
    changes = {
        "balance": "none",
        "deferral_span": 0,
        "deferral_bytes": None,
        "trace_steps": _COUNTED,
        "evaluation": evaluation,
    }
    return job.train.model_copy(update=changes)


def _cut(job: JobConfig, name: str, degrees: Mapping[str, int]) -> Any:
    """Return a module in other degrees; with tp, known models share tokens between matrices too."""
    module = job.modules[name]
    changes: dict[str, Any] = dict(degrees)
    if "tp" in degrees:
        changes["sp"] = degrees["tp"] > 1 and not isinstance(module, CustomModule)
    parallel = module.parallel.model_copy(update=changes)
    ranks, rest = job.groups[module.group].ranks, parallel.tp * parallel.cp * parallel.pp
    if ranks % rest:
        raise ConfigError(
            f"modules.{name}: tp*cp*pp = {parallel.tp}*{parallel.cp}*{parallel.pp} = {rest} does "
            f"not divide the {ranks} ranks of group {module.group!r}; ask for other degrees"
        )
    parallel = parallel.model_copy(update={"dp": ranks // rest})
    return module.model_copy(update={"parallel": parallel})


@dataclass(frozen=True)
class TrialPlans:
    """The steps of a trial: a few different plans, again and again.

    Args:
        plans: the different ones.
    """

    plans: tuple[StepPlan, ...]

    @classmethod
    def of(cls, job: JobConfig, sizes: Sequence[SampleSize]) -> "TrialPlans":
        """Return the plans of a trial.

        Args:
            job: as the trial runs it.
            sizes: of the training samples.

        Raises:
            DataError: no sample has tokens of a module.
        """
        drawn = _drawn(job, sizes)
        microbatches, per_step = _Sizes(job, drawn).microbatches(), job.train.microbatches
        num_plans = -(-len(microbatches) // per_step)
        filled = islice(cycle(microbatches), num_plans * per_step)
        return cls(tuple(_plan(job, list(islice(filled, per_step))) for _ in range(num_plans)))

    @property
    def num_steps(self) -> int:
        """Steps of the trial."""
        return _WARM_UP + _REPEATS * len(self.plans)

    @property
    def counted(self) -> range:
        """Steps whose activations and updates count; counting slows passes down a little."""
        return range(1, _WARM_UP)

    @property
    def timed(self) -> range:
        """Steps whose passes and transfers count."""
        return range(_WARM_UP, self.num_steps)

    def number_of(self, step: int) -> int:
        """Return which of the plans a step has."""
        return max(step - _WARM_UP, 0) % len(self.plans)

    def steps(self) -> Iterator[StepPlan]:
        """Return the plan of every step; weights stay as they are, with a learning rate of 0."""
        for step in range(self.num_steps):
            yield replace(self.plans[self.number_of(step)], step=step)


def _drawn(job: JobConfig, sizes: Sequence[SampleSize]) -> list[SampleSize]:
    count = min(len(sizes), _MOST_DRAWN)
    chosen = np.random.default_rng(job.seed).choice(len(sizes), count, replace=False)
    return [sizes[int(index)] for index in chosen]


class _Sizes:
    """Microbatches of many sizes."""

    def __init__(self, job: JobConfig, drawn: Sequence[SampleSize]) -> None:
        self._job, self._drawn = job, drawn
        self._table = SampleTable.of(drawn, list(job.encoders))
        self._lanes = lcm(*(module.parallel.dp for module in job.modules.values()))
        per_microbatch = job.train.global_batch / job.train.microbatches
        self._per_lane = max(1, round(per_microbatch / self._lanes))

    def microbatches(self) -> list[list[SampleSize]]:
        """Return samples of short to long inputs of each module, few and many of each."""
        found: list[list[SampleSize]] = []
        for name in self._job.modules:
            order, sizes = self._by_size(name)
            low, high = np.percentile(sizes, _ENDS)
            for target in np.geomspace(low, high, _NUM_SIZES):
                found += self._of_size(order, int(np.searchsorted(sizes, target)))
        return found

    def _of_size(self, order: Sequence[int], at: int) -> list[list[SampleSize]]:
        """Return two microbatches around a place in an order by size: of few and of many."""
        most = self._most_per_lane([self._drawn[i] for i in self._near(order, at, 1)])
        counts = dict.fromkeys((max(1, most // _FEW), most))
        return [[self._drawn[i] for i in self._near(order, at, count)] for count in counts]

    def _by_size(self, name: str) -> tuple[list[int], Floats]:
        """Return the samples with tokens of a module, and their tokens, ascending."""
        tokens_S = self._table.tokens[name]
        order = [int(i) for i in np.argsort(tokens_S, kind="stable") if tokens_S[i] > 0]
        if not order:
            raise DataError(
                f"none of {len(self._drawn)} samples has tokens for modules.{name}, so it cannot "
                f"be measured; give it data, or take the module out"
            )
        return order, tokens_S[order]

    def _near(self, order: Sequence[int], at: int, per_lane: int) -> list[int]:
        """Return samples next to each other in size; again from the first where they are few."""
        count = per_lane * self._lanes
        begin = max(0, min(at - count // 2, len(order) - count))
        return list(islice(cycle(order[begin : begin + count]), count))

    def _most_per_lane(self, like: Sequence[SampleSize]) -> int:
        """Return how many samples of a size a lane has room for."""
        table = SampleTable.of(like, list(self._job.encoders))
        most: float = self._per_lane
        for name, tokens_S in self._table.tokens.items():
            if mean := float(table.tokens[name].mean()):
                usual = _MOST_WORK * self._per_lane * float(tokens_S.mean())
                most = min(most, usual / mean)
        if (budget := token_budget(self._job)) is not None:
            most = min(most, budget.room / max(map(budget.padded, like)))
        return max(1, int(most))


def _plan(job: JobConfig, microbatches: Sequence[Sequence[SampleSize]]) -> StepPlan:
    samples = tuple(sample for microbatch in microbatches for sample in microbatch)
    assignment = {
        name: _dealt(microbatches, module.parallel.dp) for name, module in job.modules.items()
    }
    return StepPlan(0, samples, assignment)


def _dealt(microbatches: Sequence[Sequence[SampleSize]], dp: int) -> Assignment:
    """Deal samples, which are sorted by size, out to lanes in turn."""
    assignment, first = [], 0
    for microbatch in microbatches:
        indices = range(first, first + len(microbatch))
        assignment.append(tuple(tuple(indices[lane::dp]) for lane in range(dp)))
        first += len(microbatch)
    return tuple(assignment)
