"""However many groups and calls are given a plan, the object store gets it once."""

from typing import Any

import pytest

from actors import plans as under_test
from actors.group import ActorGroup
from actors.plans import StoredPlans
from disagg_train.planner.in_order import in_order
from disagg_train.planner.step_plan import SampleSize, StepPlan


class Method:
    """A method of an actor that notes what it is called with."""

    def __init__(self) -> None:
        self.given: list[tuple[Any, ...]] = []

    def remote(self, *arguments: Any) -> "Ref":
        self.given.append(arguments)
        return Ref()


class Ref:
    """A call's result that never comes."""

    def future(self) -> "Ref":
        return self

    def add_done_callback(self, _: Any) -> None:
        pass


class Actor:
    """A rank that only notes its calls."""

    def __init__(self) -> None:
        self.train, self.probe, self.evaluate = Method(), Method(), Method()


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> list[StepPlan]:
    """Return the plans that are put into the store; a plan's reference is its step."""
    found: list[StepPlan] = []

    def note(plan: StepPlan) -> int:
        found.append(plan)
        return plan.step

    monkeypatch.setattr(under_test.ray, "put", note)
    return found


def _plans(count: int) -> list[StepPlan]:
    return [
        StepPlan(step, (SampleSize(0, 8, 7),), {"language": in_order(1, 1, 1)})
        for step in range(count)
    ]


def test_a_plan_is_put_once_for_all_groups_and_calls(put: list[StepPlan]) -> None:
    stored, actors = StoredPlans(), [Actor() for _ in range(4)]
    groups = [ActorGroup("encoders", actors[:2], []), ActorGroup("language", actors[2:], [])]
    first, second, third = _plans(3)
    for group in groups:
        group.share(stored)
        group.train(first, second)
        group.probe(third)
        group.train(second, third)
        group.train(third, None)
    assert put == [first, second, third]
    for actor in actors:
        assert actor.train.given == [(0, 1), (1, 2), (2, None)]
        assert actor.probe.given == [(2,)]


def test_an_equal_plan_that_was_made_again_is_put_again(put: list[StepPlan]) -> None:
    stored, [plan], [again] = StoredPlans(), _plans(1), _plans(1)
    assert plan == again
    assert [stored.ref(each) for each in (plan, again, plan)] == [0, 0, 0]
    assert [each is plan for each in put] == [True, False]


def test_plans_of_long_ago_are_let_go(put: list[StepPlan]) -> None:
    stored, plans = StoredPlans(), _plans(6)
    for plan in plans:
        stored.ref(plan)
    stored.ref(plans[5])
    assert len(put) == 6
    stored.ref(plans[0])
    assert len(put) == 7
