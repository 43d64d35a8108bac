"""Which samples go to which microbatch and dp rank, so that none has more work than others.

Image sizes and answer lengths vary, and an assignment that suits the encoders does not suit the
LLM. Both levels of Entrain (arXiv 2605.27918) are here: ``strata`` gives microbatches equal work
of the encoders, ``deferral`` then evens the LLM's out under the order that samples are encoded
before, and not long before, the LLM takes them. Inside a microbatch ``dp_lanes`` gives every
module's dp ranks equal work. A step's result does not depend on any of it.

What comes out is never worse than what went in: candidates are timed by the schedule simulator
with the costs of the samples, and so is the assignment that they start from.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from types import MappingProxyType

import numpy as np

from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.planner.deferral import (
    Deferral,
    Kept,
    heavy_before_light,
    put_off,
    reach_of,
)
from disagg_train.planner.dp_lanes import LaneRoom, packed_lanes, padded_lanes
from disagg_train.planner.gathering import runs
from disagg_train.planner.in_order import TokenBudget, token_budget
from disagg_train.planner.local_search import Bounds, improved
from disagg_train.planner.sample_costs import Floats, Ints, SampleTable
from disagg_train.planner.seats import Seats
from disagg_train.planner.step_costs import JobCosts, step_costs
from disagg_train.planner.step_plan import Assignment, SampleSize
from disagg_train.planner.strata import stratified
from disagg_train.schedule.alike import one_of_each
from disagg_train.schedule.graph import Reach, StageGraph
from disagg_train.schedule.ops import Schedule
from disagg_train.schedule.simulate import simulate

_TIE = 1e-3
"""Weight of the LLM's work where it only breaks ties."""

_CLEARLY = 0.99
"""Part of the seconds of an earlier candidate below which a later one is preferred: earlier ones
give microbatches more equal work, which bears errors of the costs better."""

_FEW = 4
"""Samples per lane and microbatch; with fewer, equal work is out of reach: the heaviest sample of
a microbatch decides, and so it is worth a try to put samples that are alike into one."""

_LEAST = 0.8
"""Weight of the module with the least work, where several are balanced at once."""


class Balancer:
    """Balances one step of a job after the other.

    Args:
        job: says what is to be balanced, and how far samples may be put off.
        graph: its stage graph.
        schedule: its op lists of a training step.
        costs: of its modules.
    """

    def __init__(
        self, job: JobConfig, graph: StageGraph, schedule: Schedule, costs: JobCosts
    ) -> None:
        self._job, self._costs = job, costs
        self._schedule, self._graph = one_of_each(schedule, graph)
        self._num_microbatches = schedule.num_microbatches
        self._budget = token_budget(job)

    def balanced(
        self, samples: Sequence[SampleSize], start: Mapping[str, Assignment]
    ) -> Mapping[str, Assignment]:
        """Return the fastest assignment that is found.

        Args:
            samples: of the step, in sampler order.
            start: an assignment that keeps to all limits; returned where none is faster.
        """
        step = _Step(self._job, self._costs, samples, self._num_microbatches, self._budget)
        seats = {module: Seats.of(assignment) for module, assignment in start.items()}
        fastest, least_s = None, inf
        for candidate in step.candidates():
            seconds = self._step_s(step, candidate)
            if seconds < _CLEARLY * least_s:
                fastest, least_s = candidate, seconds
        if fastest is None or least_s >= self._step_s(step, seats):
            return start
        return {module: fastest[module].assignment() for module in start}

    def _step_s(self, step: "_Step", seats: Mapping[str, Seats]) -> float:
        """Return the simulated seconds of a step."""
        costs = step_costs(self._job, self._graph, self._costs, step.table, seats)
        return simulate(self._schedule, self._graph, costs).step_time_s


class _Step:
    """The samples of one step in columns, and the ways to assign them.

    Seconds are those of one rank: a module's, over its stages and its dp ranks.
    """

    def __init__(
        self,
        job: JobConfig,
        costs: JobCosts,
        samples: Sequence[SampleSize],
        num_microbatches: int,
        budget: TokenBudget | None,
    ) -> None:
        self._job, self._costs, self._num_microbatches = job, costs, num_microbatches
        self.table = table = SampleTable.of(samples, list(job.encoders))
        self._seconds_S = {
            name: cost.sample_s(table.tokens[name], table.squares[name])
            for name, cost in costs.modules.items()
        }
        self._limit = None
        if budget is not None:
            taken = [budget.padded(sample) for sample in samples]
            self._limit = LaneRoom(np.array(taken, np.int64), budget.room)
        self._free_S = np.flatnonzero(
            np.all([table.tokens[name] == 0 for name in job.encoders], axis=0)
            if job.encoders
            else np.ones(len(table), np.bool_)
        )

    def candidates(self) -> Iterator[Mapping[str, Seats]]:
        """Return assignments worth timing, as the job's ``train.balance`` asks."""
        train = self._job.train
        few = self._has_few_per_lane()
        two_levels = train.balance == "both" and train.deferral_span and self._job.encoders
        if two_levels and not few and (seats := self._two_levels()):
            yield seats
        at_S = self._at_once()
        if seats := self._together(at_S):
            yield seats
        if train.balance != "llm" and (seats := self._gathered(at_S)):
            yield seats
        if (few or not self._job.language.packed) and (seats := self._together(self._alike())):
            yield seats

    def _has_few_per_lane(self) -> bool:
        """Whether a single sample can keep all lanes of a microbatch waiting."""
        most_dp = max(module.parallel.dp for module in self._job.modules.values())
        return len(self.table) < _FEW * most_dp * self._num_microbatches

    def _alike(self) -> Ints:
        """Return microbatches of samples that are alike: those of one wait for its heaviest."""
        heaviest_first = np.argsort(-_scaled(self._resources()).max(axis=1), kind="stable")
        at_S = np.empty(len(self.table), np.int64)
        at_S[heaviest_first] = np.arange(len(at_S)) * self._num_microbatches // len(at_S)
        return at_S

    def _at_once(self) -> Ints:
        """Return microbatches that suit all modules that are to be balanced."""
        balance = self._job.train.balance
        scaled_SR = _scaled(self._resources())
        if balance != "llm":
            wanted_R = np.ones(scaled_SR.shape[1])
            wanted_R[-1] = 1.0 if balance == "both" else _TIE
        else:
            wanted_R = np.full(scaled_SR.shape[1], _TIE)
            wanted_R[-1] = 1.0
        return even(scaled_SR * wanted_R, self._num_microbatches)

    def _two_levels(self) -> Mapping[str, Seats] | None:
        """Return Entrain's assignment: the encoders' microbatches, then the LLM's."""
        scaled_SR = _scaled(self._resources())
        scaled_SR[:, -1] *= _TIE
        language_S = self._seconds_S[LANGUAGE]
        encoded_S = heavy_before_light(
            language_S, even(scaled_SR, self._num_microbatches), self._num_microbatches
        )
        lanes = {name: self._lanes(name, encoded_S) for name in self._job.encoders}
        kept = [self._kept(name, lane_S) for name, lane_S in lanes.items() if lane_S is not None]
        limits = Deferral(self._least_reach(), self._job.train.deferral_bytes, kept)
        at_S = put_off(language_S, encoded_S, self._free_S, self._num_microbatches, limits)
        encoded_S[self._free_S] = at_S[self._free_S]
        microbatches = dict.fromkeys(self._job.encoders, encoded_S) | {LANGUAGE: at_S}
        return self._seats(microbatches, lanes)

    def _gathered(self, at_S: Ints) -> Mapping[str, Seats] | None:
        """Return seats with encoders that take several microbatches at once.

        None where no encoder would, or its ranks would keep more than they may.

        Args:
            at_S: the LLM's microbatches.
        """
        run_of = runs(self._job, len(self.table))
        if all(run == 1 for run in run_of.values()):
            return None
        microbatches = {name: at_S // run * run for name, run in run_of.items()}
        seats = self._seats(microbatches | {LANGUAGE: at_S})
        if seats is None:
            return None
        most_bytes = self._job.train.deferral_bytes
        fits = (
            Deferral(
                reach_of(self._job, name), most_bytes, [self._kept(name, seats[name].lane_S)]
            ).fits(encoded_S, at_S, self._num_microbatches)
            for name, encoded_S in microbatches.items()
        )
        return seats if all(fits) else None

    def _least_reach(self) -> Reach:
        """Return how late the LLM may take a sample after all encoders."""
        reaches = [reach_of(self._job, name) for name in self._job.encoders]
        return min(reaches, key=lambda reach: reach.window or inf)

    def _kept(self, name: str, lane_S: Ints) -> Kept:
        """Return the activations that an encoder's ranks keep of samples that are put off."""
        bytes_S = self._costs.modules[name].bytes_per_token * self.table.tokens[name]
        return Kept(bytes_S, lane_S, self._job.modules[name].parallel.dp)

    def _resources(self) -> Floats:
        """Return seconds per rank, ``[sample, resource]``: groups of encoders, then the LLM.

        Encoders of one group take turns on its ranks, so their seconds add up; groups work at
        the same time, so each is a resource of its own.
        """
        columns: dict[str, Floats] = {}
        for name, module in self._job.encoders.items():
            before = columns.get(module.group, np.zeros(len(self.table)))
            columns[module.group] = before + self._rank_s(name)
        return np.stack([*columns.values(), self._rank_s(LANGUAGE)], axis=-1)

    def _rank_s(self, name: str) -> Floats:
        parallel = self._job.modules[name].parallel
        return self._seconds_S[name] / (parallel.dp * parallel.pp)

    def _together(self, at_S: Ints) -> Mapping[str, Seats] | None:
        """Return seats of samples that all modules compute in the same microbatch."""
        return self._seats(dict.fromkeys(self._job.modules, at_S))

    def _seats(
        self,
        microbatches: Mapping[str, Ints],
        lanes: Mapping[str, Ints | None] = MappingProxyType({}),
    ) -> Mapping[str, Seats] | None:
        """Return all modules' seats.

        None where a lane of the LLM has no room left.

        Args:
            microbatches: of the samples, by module.
            lanes: dp ranks, by module, where they are known.
        """
        seats = {}
        for name, module in self._job.modules.items():
            microbatch_S, known_S = microbatches[name], lanes.get(name)
            lane_S = self._lanes(name, microbatch_S) if known_S is None else known_S
            if lane_S is None:
                return None
            seats[name] = Seats(microbatch_S, lane_S, self._num_microbatches, module.parallel.dp)
        return seats

    def _lanes(self, name: str, microbatch_S: Ints) -> Ints | None:
        seconds_S, dp = self._seconds_S[name], self._job.modules[name].parallel.dp
        if name == LANGUAGE and not self._job.language.packed:
            return padded_lanes(seconds_S, microbatch_S, self._num_microbatches, dp)
        limit = self._limit if name == LANGUAGE else None
        return packed_lanes(seconds_S, microbatch_S, self._num_microbatches, dp, limit)


def even(weights_SR: Floats, num_microbatches: int) -> Ints:
    """Return microbatches of equal work: stratified, then improved sample by sample.

    Args:
        weights_SR: seconds of each sample for each of R resources.
        num_microbatches: of the step.
    """
    at_S = stratified(weights_SR, num_microbatches)
    anywhere = Bounds(np.zeros_like(at_S), np.full_like(at_S, num_microbatches - 1))
    return improved(weights_SR, at_S, anywhere, num_microbatches)


def _scaled(weights_SR: Floats) -> Floats:
    """Return weights with which resources of less work count less, but count."""
    total_R = weights_SR.sum(axis=0)
    most = total_R.max(initial=0.0)
    if most == 0.0:
        return weights_SR
    least_R = np.where(total_R > 0, _LEAST * most / np.maximum(total_R, 1e-300), 1.0)
    return weights_SR * np.maximum(1.0, least_R)
