"""Estimates: what the whole job's simulation says, from one rank per pipeline stage."""

import pytest

from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.driver.planning import staged
from disagg_train.planner.analytic_costs import costs_by_size
from disagg_train.planner.balance import Balancer
from disagg_train.planner.candidates import Candidate, Team
from disagg_train.planner.estimate import Estimator
from disagg_train.planner.in_order import start_assignment
from disagg_train.planner.memory import passing_bytes_per_token, state_bytes
from disagg_train.planner.sample_costs import SampleTable
from disagg_train.planner.seats import Seats
from disagg_train.planner.shapes import Shape
from disagg_train.planner.step_costs import step_costs
from disagg_train.planner.step_plan import SampleSize
from disagg_train.schedule.simulate import simulate
from disagg_train.schedule.timeline import Timeline
from tests.unit.planner.planned import MACHINE, samples, small_job

LAYOUTS = {
    "disjoint": Candidate(
        (Team(("vision",), 4), Team((LANGUAGE,), 8)),
        {"vision": Shape(tp=2), LANGUAGE: Shape(tp=2, pp=2)},
        4,
        4,
    ),
    "colocated in windows": Candidate(
        (Team(("vision", LANGUAGE), 8),),
        {"vision": Shape(), LANGUAGE: Shape(tp=2, pp=4, recompute="full")},
        8,
        4,
    ),
    "interleaved, an encoder of two stages": Candidate(
        (Team(("vision",), 6), Team((LANGUAGE,), 4)),
        {"vision": Shape(pp=2), LANGUAGE: Shape(pp=2, vpp=2)},
        4,
        4,
    ),
    "zero-bubble, context parallel": Candidate(
        (Team(("vision",), 3), Team((LANGUAGE,), 8)),
        {"vision": Shape(), LANGUAGE: Shape(cp=2, pp=2)},
        4,
        4,
        "zero_bubble",
        1,
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("balance", ["none", "both"])
def test_an_estimate_is_what_the_whole_job_simulates(layout: str, balance: str) -> None:
    job = LAYOUTS[layout].job(small_job(balance=balance))
    assert job is not None
    costs, batch = costs_by_size(job, MACHINE), samples(job, 16)
    found = Estimator(job, staged, costs).estimate((batch,))
    whole = _whole(job, batch)
    assert found.step_s == pytest.approx(whole.step_time_s, rel=0.02)
    bubbles = [whole.module_bubble[name] for name in job.modules]
    assert found.bubble[job.language.group] == pytest.approx(bubbles[-1], abs=0.02)
    held = max(
        peak + sum(state_bytes(job)[s.module][_number(s.name)] for s in whole.graph.stages_of(rank))
        for rank, peak in enumerate(whole.peak_bytes)
        if any(s.module == LANGUAGE for s in whole.graph.stages_of(rank))
    )
    passing = max(max(each) for each in passing_bytes_per_token(job).values())
    most = sum(sample.sequence_tokens for sample in batch)
    assert held <= found.num_bytes[job.language.group] <= held + passing * most


def _number(stage: str) -> int:
    return int(stage.partition(".")[2] or 0)


def _whole(job: JobConfig, batch: tuple[SampleSize, ...]) -> Timeline:
    """Simulate the job with all of its ranks."""
    schedule, graph = staged(job)
    costs, assignment = costs_by_size(job, MACHINE), start_assignment(job, batch)
    if job.train.balance != "none":
        balancer = Balancer(job, graph, schedule, costs)
        assignment = dict(balancer.balanced(batch, assignment))
    seats = {name: Seats.of(each) for name, each in assignment.items()}
    table = SampleTable.of(batch, list(job.encoders))
    return simulate(schedule, graph, step_costs(job, graph, costs, table, seats))


def test_modules_and_waits_fill_the_step() -> None:
    job = LAYOUTS["disjoint"].job(small_job())
    assert job is not None
    found = Estimator(job, staged, costs_by_size(job, MACHINE)).estimate((samples(job, 16),))
    for name, module in job.modules.items():
        filled = found.busy_s[name] + found.bubble[module.group] * found.step_s
        assert filled == pytest.approx(found.step_s)
