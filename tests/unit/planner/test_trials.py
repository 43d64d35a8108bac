"""What a profile runs: degrees that fit, microbatches of many sizes, steps in turn."""

from collections import Counter

import numpy as np
import pytest

from disagg_train.bench.spreads import SPREADS
from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.errors import ConfigError, DataError
from disagg_train.planner.in_order import token_budget
from disagg_train.planner.sample_costs import SampleTable
from disagg_train.planner.seats import Seats
from disagg_train.planner.step_costs import lane_sums
from disagg_train.planner.step_plan import SampleSize
from disagg_train.planner.trials import TrialPlans, parse_degrees, trial_jobs
from tests.unit.config.jobs import JOB

SAMPLES = SPREADS["chart-to-table"].samples(512, seed=1)
SIZES = ("train.global_batch=64", "train.microbatches=4", "modules.vision.projector.merge=4")


def job_of(*overrides: str) -> JobConfig:
    return load_job(JOB, [*SIZES, *overrides])


def test_degrees_are_combined() -> None:
    found = parse_degrees(["vision:tp=1,2", "language:tp=1,2:pp=1,2", "vision:tp=4"])
    assert found["vision"] == [{"tp": 1}, {"tp": 2}, {"tp": 4}]
    assert found["language"] == [{"tp": t, "pp": p} for t in (1, 2) for p in (1, 2)]


@pytest.mark.parametrize("text", ["vision", "vision:dp=2", "vision:tp", "vision:tp=0", "a:tp=x"])
def test_degrees_of_another_form_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="as in language:tp=1,2:pp=1,2"):
        parse_degrees([text])


def test_without_degrees_the_job_is_measured_as_it_is() -> None:
    job = job_of()
    (trial,) = trial_jobs(job, {})
    assert [m.parallel for m in trial.modules.values()] == [
        m.parallel for m in job.modules.values()
    ]


def test_dp_takes_what_is_left_of_the_group() -> None:
    trials = trial_jobs(job_of(), parse_degrees(["vision:tp=1,2", "language:tp=1,2:pp=1,2"]))
    cut = [[each.modules[name].parallel for name in each.modules] for each in trials]
    assert [[(p.tp, p.pp, p.dp) for p in found] for found in cut] == [
        [(1, 1, 2), (1, 1, 4)],
        [(2, 1, 1), (1, 2, 2)],
        [(1, 1, 2), (2, 1, 2)],
        [(2, 1, 1), (2, 2, 1)],
    ]


def test_every_degree_is_measured_and_shorter_lists_begin_again() -> None:
    trials = trial_jobs(job_of(), parse_degrees(["vision:tp=1,2", "language:tp=1,2,4"]))
    assert [t.modules["vision"].parallel.tp for t in trials] == [1, 2, 1]
    assert [t.modules["language"].parallel.tp for t in trials] == [1, 2, 4]
    assert [t.modules["language"].parallel.dp for t in trials] == [4, 2, 1]
    assert [t.modules["language"].parallel.sp for t in trials] == [False, True, True]


def test_degrees_that_do_not_fit_the_group_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"tp\*cp\*pp = 4\*1\*2 = 8 does not divide the 4 ranks"):
        trial_jobs(job_of(), parse_degrees(["language:tp=4:pp=2"]))
    with pytest.raises(ConfigError, match="degrees of \\['sound'\\]"):
        trial_jobs(job_of(), parse_degrees(["sound:tp=2"]))


LAYOUTS = {
    "dp": (),
    "few samples": ("train.global_batch=4",),
    "one microbatch": ("train.microbatches=1",),
    "more microbatches than sizes": ("train.microbatches=32",),
    "budget": ("train.tokens_per_microbatch=4096",),
}


def plans_of(*overrides: str) -> tuple[JobConfig, TrialPlans]:
    (job,) = trial_jobs(job_of(*overrides), {})
    return job, TrialPlans.of(job, SAMPLES)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_lane_has_work_of_many_sizes(layout: str) -> None:
    job, plans = plans_of(*LAYOUTS[layout])
    for name in job.modules:
        tokens, per_sample = [], []
        for plan in plans.plans:
            table = SampleTable.of(plan.samples, list(job.encoders))
            seats = Seats.of(plan.assignment[name])
            tokens_ML, squares_ML = lane_sums(job, table, name, seats)
            assert tokens_ML.shape[0] == job.train.microbatches
            assert tokens_ML.min() > 0
            tokens += tokens_ML.flatten().tolist()
            per_sample += (squares_ML / tokens_ML).flatten().tolist()
        assert max(tokens) > 3 * min(tokens)
        assert max(per_sample) > 3 * min(per_sample), "lengths differ, not only their number"


def test_no_lane_has_much_more_than_the_job_s_own_unless_a_sample_has() -> None:
    job, plans = plans_of()
    usual = np.mean([sample.sequence_tokens for sample in SAMPLES]) * 64 / 4 / 2
    for plan in plans.plans:
        table = SampleTable.of(plan.samples, list(job.encoders))
        tokens_ML, _ = lane_sums(job, table, "language", Seats.of(plan.assignment["language"]))
        assert tokens_ML.max() < 2 * usual


def test_no_lane_goes_beyond_its_budget() -> None:
    job, plans = plans_of("train.tokens_per_microbatch=4096")
    budget = token_budget(job)
    assert budget is not None
    for plan in plans.plans:
        for microbatch in plan.assignment["language"]:
            for lane in microbatch:
                filled = sum(budget.padded(plan.samples[i]) for i in lane)
                assert filled <= budget.room or len(lane) == 1


def test_every_plan_is_timed_equally_often_after_a_warm_up() -> None:
    _, plans = plans_of()
    steps = list(plans.steps())
    assert [plan.step for plan in steps] == list(range(plans.num_steps))
    counts = Counter(plans.number_of(step) for step in plans.timed)
    assert set(counts) == set(range(len(plans.plans)))
    assert len(set(counts.values())) == 1
    for step in plans.timed:
        assert steps[step].samples == plans.plans[plans.number_of(step)].samples
    assert all(plan.learning_rate == 0.0 for plan in steps)


def test_the_same_job_gives_the_same_plans() -> None:
    (_, first), (_, second) = plans_of(), plans_of()
    assert first == second


def test_a_module_without_data_cannot_be_measured() -> None:
    job = job_of()
    with pytest.raises(DataError, match=r"none of 3 samples has tokens for modules\.vision"):
        TrialPlans.of(job, [SampleSize(key, 10, 4) for key in range(3)])
