"""What a step of a job takes: its schedule, simulated on batches of the data. Pure.

A stage's replicas do the same at the same times, so schedules are built for one rank per pipeline
stage; the costs are those of the real layout.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from statistics import mean
from typing import Any

from disagg_train.config.job import JobConfig
from disagg_train.config.modules import ParallelConfig
from disagg_train.planner.balance import Balancer
from disagg_train.planner.in_order import start_assignment
from disagg_train.planner.memory import passing_bytes_per_token, state_bytes
from disagg_train.planner.sample_costs import SampleTable
from disagg_train.planner.seats import Seats
from disagg_train.planner.step_costs import JobCosts, lane_sums, step_costs
from disagg_train.planner.step_plan import Assignment, SampleSize
from disagg_train.planner.workload import Batches
from disagg_train.schedule.graph import StageGraph
from disagg_train.schedule.ops import Schedule
from disagg_train.schedule.simulate import simulate
from disagg_train.schedule.timeline import Timeline

Staged = Callable[[JobConfig], tuple[Schedule, StageGraph]]
"""Builds the op lists and the stage graph of a job."""


@dataclass(frozen=True)
class Estimate:
    """What a step is expected to take.

    Args:
        step_s: mean over batches.
        tokens_per_s: of the LLM's sequences.
        busy_s: per module, seconds of a step that a rank of its group spends on its passes.
        bubble: per group, the part of a step in which its ranks compute nothing.
        num_bytes: per group, on the rank that holds most: weights, gradients, the optimizer's
            state, activations, and what lives inside one op.
    """

    step_s: float
    tokens_per_s: float
    busy_s: Mapping[str, float]
    bubble: Mapping[str, float]
    num_bytes: Mapping[str, float]


@dataclass(frozen=True)
class _Balanced:
    """A batch with who computes what.

    Args:
        samples: of the batch; held, so that nothing else gets their identity.
        table: their sizes.
        seats: of every module.
    """

    samples: tuple[SampleSize, ...]
    table: SampleTable
    seats: Mapping[str, Seats]


class Estimator:
    """Simulates steps of one job.

    Args:
        job: laid out in one way.
        staged: builds its op lists.
        costs: of its modules; steps are balanced by them.
    """

    def __init__(self, job: JobConfig, staged: Staged, costs: JobCosts) -> None:
        self._job, self._costs = job, costs
        self._schedule, self._graph = staged(thin(job))
        self._balancer = Balancer(job, self._graph, self._schedule, costs)
        self._balanced: dict[int, _Balanced] = {}

    def estimate(self, batches: Batches, costs: JobCosts | None = None) -> Estimate:
        """Return what a step takes.

        Args:
            batches: samples of a step each.
            costs: of the job's modules, where they are others than steps are balanced by.
        """
        costs = costs or self._costs
        steps, most_tokens = [], dict.fromkeys(self._job.modules, 0.0)
        for samples in batches:
            step = self._step(samples)
            table, seats = step.table, step.seats
            found = step_costs(self._job, self._graph, costs, table, seats)
            steps.append(simulate(self._schedule, self._graph, found))
            for name, most in most_tokens.items():
                tokens_ML, _ = lane_sums(self._job, table, name, seats[name])
                most_tokens[name] = max(most, float(tokens_ML.max()))
        tokens = mean(sum(s.sequence_tokens for s in samples) for samples in batches)
        step_s = mean(step.step_time_s for step in steps)
        return Estimate(
            step_s=step_s,
            tokens_per_s=tokens / step_s,
            busy_s={name: mean(self._busy_s(s, name) for s in steps) for name in self._job.modules},
            bubble=self._of_groups(_bubbles(steps)),
            num_bytes=self._bytes(steps, most_tokens),
        )

    def _step(self, samples: tuple[SampleSize, ...]) -> "_Balanced":
        """Return a batch with who computes what; looked at again, it is still the same."""
        if id(samples) not in self._balanced:
            assignment: Mapping[str, Assignment] = start_assignment(self._job, samples)
            if self._job.train.balance != "none":
                assignment = self._balancer.balanced(samples, assignment)
            seats = {name: Seats.of(each) for name, each in assignment.items()}
            table = SampleTable.of(samples, list(self._job.encoders))
            self._balanced[id(samples)] = _Balanced(samples, table, seats)
        return self._balanced[id(samples)]

    def _busy_s(self, step: Timeline, module: str) -> float:
        """Return the mean seconds that a rank of a module's group spends on its passes."""
        stages = set(self._stages(module))
        places = set[int]().union(*(self._graph.nodes[stage].places for stage in stages))
        spent = [
            each.duration_s
            for place in places
            for each in step.slices[place]
            if each.op.kind.is_compute and each.op.module in stages
        ]
        return sum(spent) / len(places)

    def _bytes(
        self, steps: Sequence[Timeline], most_tokens: Mapping[str, float]
    ) -> dict[str, float]:
        """Return bytes per group on the rank that holds most.

        Args:
            steps: that tell the activations.
            most_tokens: of a microbatch on one dp rank, per module.
        """
        state = self._by_stage(state_bytes(self._job))
        passing = self._by_stage(passing_bytes_per_token(self._job))
        held = []
        for rank in self._ranks:
            stages = self._graph.stages_of(rank)
            peak = max(step.peak_bytes[rank] for step in steps)
            briefly = max(passing[stage.name] * most_tokens[stage.module] for stage in stages)
            held.append(peak + briefly + sum(state[stage.name] for stage in stages))
        return self._of_groups(held, max)

    def _by_stage(self, by_module: Mapping[str, Sequence[float]]) -> dict[str, float]:
        return {
            stage: number
            for module, numbers in by_module.items()
            for stage, number in zip(self._stages(module), numbers, strict=True)
        }

    @property
    def _ranks(self) -> range:
        return range(self._graph.num_ranks)

    def _stages(self, module: str) -> list[str]:
        return [name for name, node in self._graph.nodes.items() if node.module == module]

    def _of_groups(
        self, values: Sequence[float], take: Callable[[Any], float] = mean
    ) -> dict[str, float]:
        places: dict[str, set[int]] = {}
        for node in self._graph.nodes.values():
            places.setdefault(node.group, set()).update(node.places)
        return {group: take(values[place] for place in found) for group, found in places.items()}


def thin(job: JobConfig) -> JobConfig:
    """Return a job with one rank per pipeline stage; unchecked, for its op lists alone.

    Modules that share a group share its ranks in the thin job, too.
    """
    ranks = {
        group: lcm(*(m.parallel.pp for m in job.modules.values() if m.group == group))
        for group in job.groups
    }
    modules = {}
    for name, module in job.modules.items():
        own = module.parallel
        parallel = ParallelConfig(pp=own.pp, vpp=own.vpp, dp=ranks[module.group] // own.pp)
        modules[name] = module.model_copy(update={"parallel": parallel})
    groups = {
        name: group.model_copy(update={"ranks": ranks[name]}) for name, group in job.groups.items()
    }
    return job.model_copy(update={"groups": groups, "modules": modules})


def _bubbles(steps: Sequence[Timeline]) -> list[float]:
    return [mean(rank) for rank in zip(*(step.bubble for step in steps), strict=True)]
