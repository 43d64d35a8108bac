"""The scale of an fp16 loss: one number, the same on every rank of the job.

Every rank keeps its own and changes it by what all ranks agreed on, so all stay equal.
"""

from disagg_train.config.job import LossScaleConfig

_SMALLEST = 2.0**-24


class LossScale:
    """Halved when a step is skipped, doubled after enough steps that were not.

    Args:
        config: where it starts, and how many steps are enough.
    """

    def __init__(self, config: LossScaleConfig) -> None:
        self.value, self._interval, self._good_steps = config.initial, config.growth_interval, 0

    def update(self, skipped: bool) -> None:
        """Note how a step ended."""
        if skipped:
            self.value, self._good_steps = max(self.value / 2.0, _SMALLEST), 0
            return
        self._good_steps += 1
        if self._good_steps == self._interval:
            self.value, self._good_steps = self.value * 2.0, 0

    @property
    def state(self) -> tuple[float, int]:
        """The scale, and how many steps since it changed were good."""
        return self.value, self._good_steps

    def resume(self, value: float, good_steps: int) -> None:
        """Go on from an earlier ``state``."""
        self.value, self._good_steps = value, good_steps
