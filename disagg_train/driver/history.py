"""Plans are remembered, so that steps that are lost can be run again exactly."""

from collections.abc import Collection, Iterator
from typing import Any

from disagg_train.config.job import JobConfig
from disagg_train.driver.plans import TrainingPlans
from disagg_train.planner.step_plan import StepPlan


class PlanLog(Iterator[StepPlan]):
    """The plans of a run, which can go back to an earlier step.

    Args:
        plans: that are remembered; their batches can be mended and restored.
    """

    def __init__(self, plans: TrainingPlans) -> None:
        self._new = plans
        self._next_step = plans.step
        self._plans: dict[int, StepPlan] = {}
        self._states: dict[int, dict[str, Any]] = {}

    def __next__(self) -> StepPlan:
        """Return the next plan: a recorded one after going back, else a new one."""
        step = self._next_step
        if step not in self._plans:
            state = self._new.sampler_state()
            self._plans[step] = next(self._new)
            self._states[step] = state
        self._next_step += 1
        return self._plans[step]

    def without(self, keys: Collection[int]) -> StepPlan:
        """Make the newest plan again as if some samples had never been there.

        A plan that was recorded before it was committed is mended like a new one.
        """
        step = self._next_step - 1
        self._new.go_back(step, self._states[step], keys)
        for later in [number for number in self._plans if number >= step]:
            del self._plans[later], self._states[later]
        self._next_step = step
        return next(self)

    def plan(self, step: int) -> StepPlan:
        """Return the plan of a step that is remembered."""
        return self._plans[step]

    def num_drawn(self, steps_done: int) -> int:
        """Return how many plans after the first ``steps_done`` are there already."""
        return self._new.step - steps_done

    def sampler_state(self, steps_done: int) -> dict[str, Any]:
        """Return the state with which the plan number ``steps_done`` is drawn."""
        if steps_done == self._new.step:
            return self._new.sampler_state()
        return self._states[steps_done]

    def rewind(self, steps_done: int) -> None:
        """Give the plan number ``steps_done`` next, then those after it: the same ones again.

        Args:
            steps_done: of a plan that is remembered, or of the one that is drawn next.
        """
        assert steps_done in self._plans or steps_done == self._new.step, "it was forgotten"
        self._next_step = steps_done

    def lay_out(self, job: JobConfig) -> None:
        """Lay all plans out for the same job on other ranks; their samples stay the same."""
        self._new.lay_out(job)
        for step, plan in self._plans.items():
            self._plans[step] = self._new.plan(step, plan.samples)

    def forget(self, before: int) -> None:
        """Forget the plans of steps before ``before``, to which nothing goes back any more."""
        for step in [number for number in self._plans if number < before]:
            del self._plans[step], self._states[step]
