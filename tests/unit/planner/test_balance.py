"""Balanced assignments: within all limits, never slower than the order of the samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import mean
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disagg_train.boundary.of_job import job_graph
from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.config.load import load_job
from disagg_train.driver.plans import TrainingPlans
from disagg_train.driver.schedules import job_schedules
from disagg_train.errors import PlanError
from disagg_train.planner.analytic_costs import costs_by_size
from disagg_train.planner.balance import Balancer, even
from disagg_train.planner.deferral import (
    Deferral,
    Kept,
    check_order,
    heavy_before_light,
    put_off,
    reach_of,
)
from disagg_train.planner.in_order import in_order, token_budget
from disagg_train.planner.machine import Machine
from disagg_train.planner.sample_costs import SampleTable
from disagg_train.planner.seats import Seats
from disagg_train.planner.step_costs import step_costs
from disagg_train.planner.step_plan import Assignment, SampleSize, Slot, StepPlan
from disagg_train.schedule.graph import Reach
from disagg_train.schedule.simulate import simulate
from tests.unit.planner.exact import least_seconds

MACHINE = Machine(flops_per_s=1e9, link_bytes_per_s=1e9, latency_s=1e-5)
_SIZES = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4}


@dataclass(frozen=True)
class Case:
    """A job with the samples of one step."""

    job: JobConfig
    drawn: tuple[SampleSize, ...]

    @cached_property
    def samples(self) -> tuple[SampleSize, ...]:
        """As many as there is room for."""
        budget = token_budget(self.job)
        count = len(self.drawn) if budget is None else budget.num_fitting(self.drawn)
        return self.drawn[:count]

    @cached_property
    def start(self) -> Mapping[str, Assignment]:
        unbalanced = self.job.train.model_copy(update={"balance": "none"})
        job = self.job.model_copy(update={"train": unbalanced})
        return next(TrainingPlans(job, iter([self.samples]))).assignment

    def balanced(self) -> Mapping[str, Assignment]:
        graph, (schedule, _) = job_graph(self.job), job_schedules(self.job)
        balancer = Balancer(self.job, graph, schedule, costs_by_size(self.job, MACHINE))
        return balancer.balanced(self.samples, self.start)

    def seconds(self, assignment: Mapping[str, Assignment]) -> float:
        """Return the simulated seconds of a step, with the costs of its samples."""
        graph, (schedule, _) = job_graph(self.job), job_schedules(self.job)
        costs = costs_by_size(self.job, MACHINE)
        seats = {module: Seats.of(each) for module, each in assignment.items()}
        table = SampleTable.of(self.samples, list(self.job.encoders))
        return simulate(
            schedule, graph, step_costs(self.job, graph, costs, table, seats)
        ).step_time_s


@st.composite
def cases(draw: st.DrawFn, **train: Any) -> Case:
    """Draw one or two encoders, anywhere, and samples of which some have nothing for them."""
    encoders = ("vision", "audio")[: draw(st.integers(1, 2))]
    groups = {LANGUAGE: {"ranks": 1}}
    modules: dict[str, Any] = {}
    for name in encoders:
        group = draw(st.sampled_from([LANGUAGE, "encoders"]))
        dp = draw(st.sampled_from([1, 1, 2, 3]))
        groups.setdefault(group, {"ranks": dp})
        modules[name] = {"kind": "vit", "group": group, "freeze": draw(st.booleans())}
        modules[name]["model"] = {**_SIZES, "patch_size": 4}
    language_dp = draw(st.sampled_from([1, 1, 2, 3]))
    groups[LANGUAGE] = {"ranks": language_dp}
    for module in modules.values():
        module["parallel"] = {"dp": groups[module["group"]]["ranks"]}
    packed = train.get("tokens_per_microbatch") is not None or draw(st.booleans())
    modules[LANGUAGE] = {
        "kind": "gpt",
        "group": LANGUAGE,
        "parallel": {"dp": language_dp},
        "model": _SIZES,
        "packed": packed,
    }
    microbatches = draw(st.integers(1, 5))
    job = load_job(
        {
            "name": "balanced",
            "groups": groups,
            "modules": modules,
            "train": {
                "steps": 1,
                "global_batch": 100,
                "microbatches": microbatches,
                "balance": draw(st.sampled_from(["encoder", "llm", "both", "both"])),
                "deferral_span": draw(st.integers(0, 2)),
                "window": draw(st.sampled_from([None, None, 1, 2, 3])),
                "optimizer": {"lr": 1e-3},
                **train,
            },
        }
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = int(rng.integers(microbatches, 20 * microbatches + 1))
    return Case(job, tuple(_sample(rng, key, encoders) for key in range(count)))


def _job(colocated: bool = False, **train: Any) -> JobConfig:
    """Return a job with an encoder of a rank, or of four that an LLM with tp 4 has, too."""
    group, parallel = (LANGUAGE, ({"dp": 4}, {"tp": 4})) if colocated else ("vision", ({}, {}))
    vision, language = parallel
    modules = {
        "vision": {
            "kind": "vit",
            "group": group,
            "parallel": vision,
            "model": {**_SIZES, "patch_size": 4},
        },
        LANGUAGE: {"kind": "gpt", "group": LANGUAGE, "parallel": language, "model": _SIZES},
    }
    ranks = {"ranks": 4 if colocated else 1}
    settings = {"steps": 1, "global_batch": 8, "optimizer": {"lr": 1e-3}, **train}
    groups = {group: ranks, LANGUAGE: ranks}
    return load_job({"name": "balanced", "groups": groups, "modules": modules, "train": settings})


def _sample(rng: np.random.Generator, key: int, encoders: tuple[str, ...]) -> SampleSize:
    position, slots, inputs = 0, {}, {}
    for name in encoders:
        lengths = rng.lognormal(2.5, 1.0, rng.choice([0, 1, 1, 2])).astype(int) + 1
        if len(lengths):
            starts = position + lengths.cumsum() - lengths
            slots[name] = tuple(map(Slot, starts.tolist(), lengths.tolist()))
            inputs[name] = tuple(lengths.tolist())
            position += int(lengths.sum())
    return SampleSize(key, position + int(rng.lognormal(3.0, 1.0)) + 1, 1, slots, inputs)


@given(cases())
@settings(max_examples=60, deadline=None)
def test_every_sample_is_computed_once_by_each_module(case: Case) -> None:
    plan = StepPlan(0, case.samples, case.balanced())  # it refuses anything else
    assert set(plan.assignment) == set(case.job.modules)
    for name, assignment in plan.assignment.items():
        assert len(assignment) == case.job.train.microbatches
        assert {len(lanes) for lanes in assignment} == {case.job.modules[name].parallel.dp}


@given(cases())
@settings(max_examples=60, deadline=None)
def test_no_sample_is_taken_before_it_is_encoded_or_beyond_the_span(case: Case) -> None:
    assignment = case.balanced()
    language_S = Seats.of(assignment[LANGUAGE]).microbatch_S
    for encoder in case.job.encoders:
        reach = reach_of(case.job, encoder)
        encoded_S = Seats.of(assignment[encoder]).microbatch_S
        pairs = zip(encoded_S.tolist(), language_S.tolist(), strict=True)
        assert all(at in reach.consumers(encoded) for encoded, at in pairs)


@given(cases(deferral_span=1, balance="both", deferral_bytes=20_000))
@settings(max_examples=60, deadline=None)
def test_no_rank_keeps_more_bytes_of_samples_put_off_than_the_budget(case: Case) -> None:
    assignment, costs = case.balanced(), costs_by_size(case.job, MACHINE)
    table = SampleTable.of(case.samples, list(case.job.encoders))
    language_S = Seats.of(assignment[LANGUAGE]).microbatch_S
    for name in case.job.encoders:
        seats = Seats.of(assignment[name])
        bytes_S = costs.modules[name].bytes_per_token * table.tokens[name]
        for microbatch in range(case.job.train.microbatches):
            waits_S = (seats.microbatch_S <= microbatch) & (language_S > microbatch)
            kept = np.bincount(seats.lane_S, bytes_S * waits_S, seats.dp)
            assert kept.max() <= 20_000 * (1 + 1e-9)


@given(cases(tokens_per_microbatch=600))
@settings(max_examples=60, deadline=None)
def test_no_lane_is_filled_beyond_its_room_and_no_sample_is_left_out(case: Case) -> None:
    assignment = case.balanced()
    held = [lane for microbatch in assignment[LANGUAGE] for lane in microbatch]
    filled = [sum(case.samples[i].sequence_tokens for i in lane) for lane in held]
    assert max(filled) <= 600
    assert sum(map(len, held)) == len(case.samples)


@given(cases())
@settings(max_examples=30, deadline=None)
def test_the_same_samples_are_assigned_the_same_way(case: Case) -> None:
    assert case.balanced() == case.balanced()


@given(cases())
@settings(max_examples=60, deadline=None)
def test_a_simulated_step_is_never_slower_than_without_balance(case: Case) -> None:
    assert case.seconds(case.balanced()) <= case.seconds(case.start)


def test_samples_stay_in_their_order_where_nothing_is_to_be_balanced() -> None:
    case = _spread_case("none")
    plan = next(TrainingPlans(case.job, iter([case.samples])))
    assert plan.assignment == {
        name: in_order(len(case.samples), 4, module.parallel.dp)
        for name, module in case.job.modules.items()
    }


@pytest.mark.parametrize("balance", ["encoder", "llm", "both"])
def test_what_is_asked_for_gets_equal_microbatches(balance: str) -> None:
    case = _spread_case(balance)
    assert case.seconds(case.balanced()) < case.seconds(case.start)
    wanted = {"encoder": {"vision"}, "llm": {LANGUAGE}, "both": {"vision", LANGUAGE}}[balance]
    for module in ("vision", LANGUAGE):
        ratio = _spread(case, module, case.balanced()) / _spread(case, module, case.start)
        assert (ratio < 0.25) == (module in wanted), (module, ratio)


_EVEN = tuple(
    SampleSize(key, 40, 1, {"vision": (Slot(0, 32),)}, {"vision": (32,)}) for key in range(8)
)


@pytest.mark.parametrize(
    ("span", "at"),
    [(3, [0, 0, 0, 0, 4, 4, 4, 4]), (2, [0, 0, 2, 2, 4, 4, 6, 6]), (0, list(range(8)))],
)
def test_an_encoder_with_more_ranks_than_samples_takes_several_microbatches_at_once(
    span: int, at: list[int]
) -> None:
    case = Case(_job(colocated=True, microbatches=8, window=4, deferral_span=span), _EVEN)
    found = case.balanced()
    assert sorted(Seats.of(found["vision"]).microbatch_S.tolist()) == at
    assert sorted(Seats.of(found[LANGUAGE]).microbatch_S.tolist()) == list(range(8))
    assert (case.seconds(found) < 0.8 * case.seconds(case.start)) == (span > 0)


def _spread(case: Case, module: str, assignment: Mapping[str, Assignment]) -> float:
    table = SampleTable.of(case.samples, ["vision"])
    cost = costs_by_size(case.job, MACHINE).modules[module]
    seconds_S = cost.sample_s(table.tokens[module], table.squares[module])
    return float(Seats.of(assignment[module]).sums(seconds_S).sum(axis=1).std())


def _spread_case(balance: str) -> Case:
    """Return 64 samples whose images and answers spread and have nothing to do with each other."""
    job = _job(microbatches=4, global_batch=64, balance=balance, deferral_span=1)
    rng = np.random.default_rng(5)
    images, answers = rng.lognormal(3.0, 0.8, (2, 64)).astype(int) + 1
    samples = tuple(
        SampleSize(key, 8 + answer, 1, {"vision": (Slot(0, 4),)}, {"vision": (image,)})
        for key, (image, answer) in enumerate(zip(images.tolist(), answers.tolist(), strict=True))
    )
    return Case(job, samples)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 6),
    st.integers(1, 3),
    st.sampled_from([None, None, 1, 2, 3]),
    st.sampled_from([None, 3.0]),
)
@settings(deadline=None)
def test_putting_off_keeps_to_the_order_the_span_the_windows_and_the_bytes(
    seed: int, microbatches: int, span: int, window: int | None, most_bytes: float | None
) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 40))
    weights_S, bytes_S = rng.lognormal(0.0, 1.0, (2, count))
    free_S = np.flatnonzero(rng.random(count) < 0.2)
    bytes_S[free_S] = 0.0
    kept = Kept(bytes_S, rng.integers(0, 2, count), 2)
    drawn_S = rng.integers(0, microbatches, count)
    encoded_S = heavy_before_light(weights_S, drawn_S, microbatches)
    reach = Reach(span, window)
    limits = Deferral(reach, most_bytes, [kept])
    at_S = put_off(weights_S, encoded_S, free_S, microbatches, limits)
    encoded_S[free_S] = at_S[free_S]
    pairs = zip(encoded_S.tolist(), at_S.tolist(), strict=True)
    assert all(at in reach.consumers(encoded) for encoded, at in pairs)
    waiting = (
        np.bincount(kept.lane_S, bytes_S * ((encoded_S <= m) & (at_S > m)), 2)
        for m in range(microbatches)
    )
    assert most_bytes is None or max(each.max() for each in waiting) <= most_bytes + 1e-9


@pytest.mark.parametrize(
    ("microbatch", "train", "last"),
    [
        (0, {"deferral_span": 2}, 3),
        (3, {"deferral_span": 1}, 2),
        (2, {"deferral_span": 2, "window": 2}, 1),
    ],
    ids=["too early", "beyond the span", "beyond the window"],
)
def test_a_sample_taken_too_early_or_too_late_is_refused(
    microbatch: int, train: dict[str, int], last: int
) -> None:
    job = _job(colocated=True, microbatches=4, **train)
    samples = [SampleSize(7, 9, 1, {"vision": (Slot(0, 2),)}, {"vision": (2,)})]
    lanes: list[Any] = [((),)] * 4
    encoded = (*lanes[:1], ((0,),), *lanes[2:])
    taken = (*lanes[:microbatch], ((0,),), *lanes[microbatch + 1 :])
    with pytest.raises(
        PlanError, match=rf"sample 7 .* in microbatch 1 .* in {microbatch}; .* 1 to {last}"
    ):
        check_order(samples, {"vision": encoded, LANGUAGE: taken}, job)
    check_order([SampleSize(7, 9, 1)], {"vision": encoded, LANGUAGE: taken}, job)


def test_work_put_off_evens_the_llm_out_and_leaves_the_encoders_as_they_are() -> None:
    weights_S = np.random.default_rng(3).lognormal(0.0, 0.5, 64)
    encoded_S = heavy_before_light(weights_S, np.arange(64) // 8, 8)
    nobody = np.zeros(0, np.int64)
    at_S = put_off(weights_S, encoded_S, nobody, 8, Deferral(Reach(1)))
    before, after = (np.bincount(each, weights_S, 8) for each in (encoded_S, at_S))
    assert (at_S > encoded_S).any()
    assert after.std() < before.std() / 3


def test_work_that_no_encoder_waits_for_is_put_off_beyond_any_budget_of_bytes() -> None:
    """The budget is spent, but two samples are texts alone."""
    weights_S = np.array([3.0, 1.0, 1.0, 1.0])
    encoded_S, text_only = np.array([0, 0, 0, 1]), np.array([1, 2])
    kept = Kept(np.array([9.0, 0.0, 0.0, 9.0]), np.zeros(4, np.int64), 1)
    at_S = put_off(weights_S, encoded_S, text_only, 2, Deferral(Reach(1), 5.0, [kept]))
    assert at_S.tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(("num_samples", "microbatches"), [(8, 2), (10, 3)])
def test_small_steps_are_within_5_percent_of_the_best_on_average(
    num_samples: int, microbatches: int
) -> None:
    """HiGHS minimises the slowest microbatch of the encoder and that of the LLM, added."""
    ratios = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        encoder_S, language_S = rng.lognormal(0.0, 0.85, (2, num_samples))
        found = _two_levels_s(encoder_S, language_S, microbatches)
        ratios.append(found / least_seconds(encoder_S, language_S, microbatches, 1, 10.0))
    assert min(ratios) > 1 - 1e-6
    assert mean(ratios) <= 1.05, ratios


def _two_levels_s(encoder_S: Any, language_S: Any, microbatches: int) -> float:
    weights_SR = np.stack([encoder_S, 1e-3 * language_S], axis=-1)
    encoded_S = heavy_before_light(language_S, even(weights_SR, microbatches), microbatches)
    nobody = np.zeros(0, np.int64)
    at_S = put_off(language_S, encoded_S, nobody, microbatches, Deferral(Reach(1)))
    slowest = np.bincount(encoded_S, encoder_S).max(), np.bincount(at_S, language_S).max()
    return float(sum(slowest))
