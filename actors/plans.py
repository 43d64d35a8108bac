"""A step plan is put into Ray's object store once, whoever is given it and however often.

Ray moves an object to a node once, on the first call there that has it as an argument, and every
rank of the node reads that copy. So each node's object store is the relay of its ranks: it lives
and dies with the node, and a rank's call still succeeds or fails by itself.
"""

from collections import deque

import ray

from disagg_train.planner.step_plan import StepPlan

_KEPT = 4
"""Plans: the one that runs, the next, one that is probed, and an evaluation's."""


class StoredPlans:
    """The newest plans in the object store; Ray frees older ones once nobody reads them."""

    def __init__(self) -> None:
        self._newest: deque[tuple[StepPlan, ray.ObjectRef]] = deque(maxlen=_KEPT)

    def ref(self, plan: StepPlan) -> ray.ObjectRef:
        """Return a reference to a plan, put into the store at first sight of this object."""
        for known, ref in self._newest:
            if known is plan:
                return ref
        ref = ray.put(plan)
        self._newest.append((plan, ref))
        return ref
