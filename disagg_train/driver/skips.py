"""Steps that all modules skip because a gradient is not finite: a few in a row, no more."""

from disagg_train.errors import DataError
from disagg_train.metrics.records import StepRecord
from disagg_train.planner.step_plan import StepPlan

_MOST_KEYS = 64


class SkippedSteps:
    """Counts skipped steps in a row.

    Args:
        most: so many may be; one more ends the run.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._in_a_row: list[int] = []

    def note(self, record: StepRecord, plan: StepPlan) -> None:
        """Count a step; one that runs again counts once.

        Args:
            record: of the step.
            plan: of the same step.

        Raises:
            DataError: too many steps in a row were skipped.
        """
        if not record.skipped:
            self._in_a_row.clear()
            return
        before = [step for step in self._in_a_row if step < record.step]
        self._in_a_row = [*before, record.step]
        if len(self._in_a_row) > self._most:
            raise DataError(self._reason(plan))

    def _reason(self, plan: StepPlan) -> str:
        first, count = self._in_a_row[0], len(self._in_a_row)
        keys = [sample.key for sample in plan.samples]
        shown = ", ".join(map(str, keys[:_MOST_KEYS]))
        if len(keys) > _MOST_KEYS:
            shown += f" and {len(keys) - _MOST_KEYS} more"
        return (
            f"all modules skipped the steps {first}..{plan.step}, as a gradient was not finite: "
            f"{count} in a row, more than train.max_skipped={self._most}; step {plan.step} has the "
            f"samples {shown}. Look at these, or lower train.optimizer.lr"
        )
