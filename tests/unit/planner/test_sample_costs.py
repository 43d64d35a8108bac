"""What samples cost: linear in tokens and squares, less where frozen, more where padded."""

from typing import Any

import numpy as np
import pytest

from disagg_train.config.job import LANGUAGE
from disagg_train.config.load import load_job
from disagg_train.planner.analytic_costs import costs_by_size
from disagg_train.planner.machine import Machine
from disagg_train.planner.sample_costs import PassCost, SampleTable
from disagg_train.planner.seats import Seats
from disagg_train.planner.step_costs import lane_sums
from disagg_train.planner.step_plan import SampleSize, Slot
from tests.unit.config.jobs import JOB

MACHINE = Machine(flops_per_s=1e9)


def seconds(*overrides: str, module: str = "vision", tokens: float = 10.0) -> float:
    cost = costs_by_size(load_job(JOB, overrides), MACHINE).modules[module]
    return float(cost.sample_s(np.array([tokens]), np.array([tokens**2]))[0])


def test_lanes_cost_what_their_samples_cost_and_something_once() -> None:
    cost = PassCost(2.0, 0.5, 7.0)
    tokens, squares = np.array([3.0, 4.0]), np.array([9.0, 8.0])
    of_samples = cost.of_samples(tokens, squares)
    assert of_samples.tolist() == [10.5, 12.0]
    lane = cost.of_lanes(np.array([7.0, 0.0]), np.array([17.0, 0.0]))
    assert lane.tolist() == [of_samples.sum() + 7.0, 0.0]


def test_twice_the_tokens_cost_more_than_twice_as_much() -> None:
    assert seconds(tokens=20) > 2 * seconds(tokens=10)


@pytest.mark.parametrize("module", ["vision", LANGUAGE])
def test_a_frozen_module_costs_less(module: str) -> None:
    assert seconds(f"modules.{module}.freeze=true", module=module) < seconds(module=module)


def test_an_encoder_of_ones_own_costs_the_llms_seconds_per_token() -> None:
    own: dict[str, Any] = {"kind": "package.module:Class", "group": "encoders"}
    own["parallel"] = {"dp": 2}
    job = load_job({**JOB, "modules": {**JOB["modules"], "vision": own}})
    costs = costs_by_size(job, MACHINE).modules
    one, none = np.array([1.0]), np.array([0.0])
    assert costs["vision"].sample_s(one, none) == pytest.approx(costs[LANGUAGE].sample_s(one, none))


def test_a_sample_is_all_its_inputs() -> None:
    samples = [
        SampleSize(0, 9, 1, {"vision": (Slot(0, 2), Slot(4, 3))}, {"vision": (8, 12)}),
        SampleSize(1, 5, 1),
    ]
    table = SampleTable.of(samples, ["vision"])
    assert table.tokens["vision"].tolist() == [20.0, 0.0]
    assert table.squares["vision"].tolist() == [64.0 + 144.0, 0.0]
    assert table.rows["vision"].tolist() == [5.0, 0.0]
    assert table.tokens[LANGUAGE].tolist() == [9.0, 5.0]


@pytest.mark.parametrize(("packed", "tokens"), [(True, 9 + 5), (False, 9 + 9)])
def test_padded_samples_cost_what_the_longest_costs(packed: bool, tokens: int) -> None:
    job = load_job(JOB, [f"modules.language.packed={str(packed).lower()}"])
    samples = [SampleSize(0, 9, 1), SampleSize(1, 5, 1), SampleSize(2, 4, 1)]
    seats = Seats.of((((0, 1), (2,)), ((), ())))
    found, _ = lane_sums(job, SampleTable.of(samples, ["vision"]), LANGUAGE, seats)
    assert found.tolist() == [[tokens, 4], [0, 0]]
