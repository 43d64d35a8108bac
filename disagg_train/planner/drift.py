"""Says when a job's encoders and its LLM no longer take the time that its layout was planned for.

The choice of a layout hangs on the ratio of the encoders' time to the LLM's. Other data than the
planner saw change it, and so do costs that it got wrong; a slower machine does not.
"""

from collections.abc import Mapping
from typing import Self

from disagg_train.config.job import LANGUAGE, JobConfig

_WEIGHT = 0.1
"""Of the newest step in the running means: they follow a change within some ten steps."""
_PATIENCE = 20
"""Steps in a row outside the margin after which it is said."""


class DriftMonitor:
    """Compares what ranks spend on each module with what was planned.

    Args:
        planned_s: per module, seconds of a step that a rank of its group spends on its passes.
        ranks: per module, of its group.
        lowest: times of the planned ratio below which another layout is quicker.
        highest: the same, above; None where none is.
        patience: steps in a row outside the margin after which it is said.
    """

    def __init__(
        self,
        planned_s: Mapping[str, float],
        ranks: Mapping[str, int],
        lowest: float,
        highest: float | None,
        patience: int = _PATIENCE,
    ) -> None:
        self._planned_s, self._ranks = planned_s, ranks
        self._lowest, self._highest, self._patience = lowest, highest, patience
        self._mean_s: dict[str, float] | None = None
        self._num_seen = self._num_outside = 0

    @classmethod
    def of(cls, job: JobConfig) -> Self | None:
        """Return the monitor of a job that was planned; None where it was not."""
        if job.plan is None:
            return None
        ranks = {name: job.groups[module.group].ranks for name, module in job.modules.items()}
        return cls(job.plan.busy_s, ranks, job.plan.lowest, job.plan.highest)

    def observe(self, observed_s: Mapping[str, float]) -> str | None:
        """Take a step in; return what people should know, once each time the margin is left.

        The first step is passed over: everything is new to it, and so it is slow.

        Args:
            observed_s: as ``planned_s``.
        """
        self._num_seen += 1
        if self._num_seen == 1:
            return None
        before_s = self._mean_s or observed_s
        self._mean_s = {
            name: before_s[name] + _WEIGHT * (observed_s[name] - before_s[name])
            for name in self._planned_s
        }
        times = self._ratio(self._mean_s) / self._ratio(self._planned_s)
        if self._lowest <= times <= (self._highest or times):
            self._num_outside = 0
            return None
        self._num_outside += 1
        return self._note(times, self._mean_s) if self._num_outside == self._patience else None

    def _ratio(self, busy_s: Mapping[str, float]) -> float:
        """Return the encoders' GPU time over the LLM's."""
        spent = {name: busy_s[name] * self._ranks[name] for name in self._planned_s}
        language = spent.pop(LANGUAGE)
        return sum(spent.values()) / language if language else 0.0

    def _note(self, times: float, mean_s: Mapping[str, float]) -> str:
        figures = ", ".join(
            f"{name} {mean_s[name]:.3g} s in place of {planned_s:.3g} s"
            for name, planned_s in self._planned_s.items()
        )
        end = "below" if times < self._lowest else "above"
        limit = self._lowest if times < self._lowest else self._highest
        return (
            f"encoders : LLM is {times:.2f} times what this layout was planned for, {end} "
            f"{limit:.2f} for {self._patience} steps; a step keeps a rank busy for {figures}. "
            f"Another layout is likely to be quicker: disagg-train profile JOB, then "
            f"disagg-train plan JOB --profile"
        )
