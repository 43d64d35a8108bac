"""How often copies are made in memory, so that they take no more of the time than they may."""

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

from disagg_train.config.survival import RecoveryConfig
from disagg_train.metrics.records import Stored

_STEPS_SEEN = 20
_COPIES_SEEN = 5


class CopyInterval:
    """Steps from one copy to the next, from what the last few took.

    Args:
        config: says how much copies may take, or how often they are made.
        shares_cores: whether storing takes time of the cores that compute.
    """

    def __init__(self, config: RecoveryConfig, shares_cores: bool) -> None:
        self._config, self._shares_cores = config, shares_cores
        self._step_times_s = deque[float](maxlen=_STEPS_SEEN)
        self._costs_s = deque[float](maxlen=_COPIES_SEEN)
        self.begin_anew()

    def begin_anew(self) -> None:
        """Pass over the next step and the next copy, which new actors are slow to make."""
        self._step_is_new = self._copy_is_new = True

    def note_step(self, step_time_s: float) -> None:
        """Note how long a step took."""
        if not self._step_is_new:
            self._step_times_s.append(step_time_s)
        self._step_is_new = False

    def note_copy(self, stored: Sequence[Stored]) -> None:
        """Note what a copy took: the slowest rank holds the others up.

        On shared cores each rank's storing does so, and not only its own step.
        """
        cost_s = max(each.stall_s for each in stored)
        if self._shares_cores:
            cost_s += sum(each.busy_s for each in stored)
        if not self._copy_is_new:
            self._costs_s.append(cost_s)
        self._copy_is_new = False

    @property
    def steps(self) -> float:
        """Steps from one copy to the next; endless while steps are not known to be long enough."""
        if self._config.copy_every_steps is not None:
            return self._config.copy_every_steps
        if not self._costs_s:
            return 1
        if not self._step_times_s:
            return math.inf
        allowed_s = self._config.max_overhead * median(self._step_times_s)
        return max(1, math.ceil(median(self._costs_s) / allowed_s)) if allowed_s else math.inf
