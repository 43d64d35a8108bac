"""Whether a run goes on after a failure, how much of it is made anew, and how soon. Pure."""

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal, NoReturn

from disagg_train.config.survival import RecoveryConfig
from disagg_train.driver.failure import Failure
from disagg_train.errors import DisaggTrainError, RankError

_LONGEST_PAUSE_S = 60.0
_SAME_FAILURE = 2


@dataclass(frozen=True)
class Restart:
    """What comes after a failure.

    Args:
        kind: whether the failed groups are made anew, or all of them.
        pause_s: to be waited before.
    """

    kind: Literal["group", "job"]
    pause_s: float


class RestartPolicy:
    """Says what comes after each failure of a run.

    Args:
        config: the job's rules.
    """

    def __init__(self, config: RecoveryConfig) -> None:
        self._config = config
        self._restarts = 0
        self._in_a_row = 0
        self._seen: Counter[tuple[int, Hashable]] = Counter()

    @property
    def num_restarts(self) -> int:
        """Restarts so far."""
        return self._restarts

    def after(self, failure: Failure) -> Restart:
        """Return how to go on.

        A group that failed again before any step was completed could not be saved: then the
        whole job restarts.

        Raises:
            DisaggTrainError: the run ends; the failure's error, with the reason.
        """
        config, same = self._config, (failure.step, failure.signature)
        self._seen[same] += 1
        if config.restart == "never":
            _end(failure, "recovery.restart is 'never'")
        if self._seen[same] == _SAME_FAILURE:
            _end(failure, f"step {failure.step} failed twice the same way, so it would again")
        if self._restarts == config.max_restarts:
            _end(failure, f"recovery.max_restarts={config.max_restarts} are used up")
        pause_s = min(config.backoff_s * 2.0**self._in_a_row, _LONGEST_PAUSE_S)
        kind = config.restart if not self._in_a_row else "job"
        self._restarts += 1
        self._in_a_row += 1
        return Restart(kind, pause_s)

    def completed(self, step: int) -> None:
        """Note that a step is done: the next failure is a new one, with the shortest pause."""
        del step
        self._in_a_row = 0


def _end(failure: Failure, reason: str) -> NoReturn:
    error, ending = failure.error, f"the run ends: {reason}"
    if isinstance(error, RankError):
        raise RankError(
            f"{error.message}; {ending}",
            error.group,
            error.rank,
            error.node,
            error.op,
            error.cause,
        ) from error
    raise DisaggTrainError(f"{type(error).__name__}: {error}; {ending}") from error
