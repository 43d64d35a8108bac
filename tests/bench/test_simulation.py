"""The simulator's bars of DESIGN, section 9: steps as they ran, within 10 % and 5 points."""

from collections.abc import Iterator
from itertools import islice

import pytest

from actors.pool import ActorPool
from disagg_train.bench.torchrun import job_plans
from disagg_train.bench.under_ray import started_pool
from disagg_train.boundary.of_job import job_graph
from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.driver import loop
from disagg_train.schedule.comparison import SimulationResult, compare

pytestmark = [pytest.mark.bench, pytest.mark.ray]

_STEPS, _WARM_UP_STEPS = 10, 2
_MOST_RANKS = 3
_PP2 = {"pp": 2}
_MODEL = {"hidden_size": 192, "num_attention_heads": 4}

JOBS = {
    "1f1b, disjoint": ({}, {}, {}),
    "1f1b, colocated": ({"dp": 2}, _PP2, {}),
    "1f1b, windows of 2": ({"dp": 2}, _PP2, {"window": 2}),
    "gpipe": ({"dp": 2}, _PP2, {"schedule": "gpipe"}),
    "zero-bubble": ({"dp": 2}, _PP2, {"schedule": "zero_bubble"}),
    "interleaved": ({"dp": 2}, {"pp": 2, "vpp": 2}, {}),
    "1f1b, disjoint, pp2": ({}, _PP2, {}),
}


def job_of(name: str) -> JobConfig:
    vision, language, train = JOBS[name]
    disjoint = "disjoint" in name
    groups = {"language": {"ranks": language.get("pp", 1)}}
    groups |= {"encoders": {"ranks": 1}} if disjoint else {}
    return load_job(
        {
            "name": "simulated",
            "groups": groups,
            "modules": {
                "vision": {
                    "kind": "vit",
                    "group": "encoders" if disjoint else "language",
                    "parallel": vision,
                    "model": {**_MODEL, "num_layers": 4, "patch_size": 4},
                },
                "language": {
                    "kind": "gpt",
                    "group": "language",
                    "parallel": language,
                    "model": {**_MODEL, "num_layers": 4},
                },
            },
            "train": {
                "steps": _STEPS,
                "global_batch": 32,
                "microbatches": 4,
                "optimizer": {"lr": 1e-3},
                "evaluation": {"samples": 0},
                "trace_steps": 0,
                **train,
            },
            "device": "cpu",
        }
    )


@pytest.fixture(scope="module")
def few_actors() -> Iterator[ActorPool]:
    """Only as many as needed, and only for now: idle ones would disturb what is timed next."""
    with started_pool(_MOST_RANKS) as pool:
        yield pool


@pytest.fixture(scope="module", params=JOBS)
def result(request: pytest.FixtureRequest, few_actors: ActorPool) -> Iterator[SimulationResult]:
    job = job_of(request.param)
    with few_actors.session(job) as session:
        plans = list(islice(job_plans(job), _STEPS))
        steps = [found for _, found in loop.train(session.groups, plans, job.deadlines.step_s)]
        yield compare(steps[_WARM_UP_STEPS:], session.schedule, job_graph(job))


def test_a_simulated_step_takes_as_long_as_the_real_one(
    result: SimulationResult, keep, request
) -> None:
    keep("simulation-" + request.node.callspec.params["result"], result.as_dict())
    assert abs(result.step_error) <= 0.10, result


def test_a_simulated_bubble_is_the_real_one(result: SimulationResult) -> None:
    assert result.bubble_gap <= 0.05, result
