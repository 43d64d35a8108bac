"""Wait for all groups, and blame the right one."""

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import Any

from disagg_train.driver.signals import Deliver
from disagg_train.errors import RankError, culprit

_BLAME_S = 5.0
_POLL_S = 0.2


def await_all(
    running: Sequence[Future[Any]], deadline_s: float, what: str, deliver: Deliver = lambda: None
) -> None:
    """Wait for all groups.

    A rank that fails takes its peers along with errors of their own; unless it is dead, all get
    a moment to report, and the culprit's error is the one that is raised.

    Args:
        running: what each group is at.
        deadline_s: for all of them together.
        what: what they are at, for the error.
        deliver: called between waits, for signals that are held back.

    Raises:
        RankError: a rank failed, or the deadline passed.
    """
    until_s = time.monotonic() + deadline_s
    done, pending = wait(running, timeout=0.0, return_when=FIRST_EXCEPTION)
    while pending and not errors_of(done) and (left_s := until_s - time.monotonic()) > 0:
        deliver()
        done, pending = wait(running, min(_POLL_S, left_s), return_when=FIRST_EXCEPTION)
    if failed := errors_of(done):
        found = culprit(failed)
        is_sure = isinstance(found, RankError) and found.cause == "died"
        raise found if is_sure else culprit(failed + late_errors(pending))
    if pending:
        raise RankError(f"no answer for {deadline_s:g} s; the {what} hangs", "any", -1)


def late_errors(running: Iterable[Future[Any]]) -> list[BaseException]:
    """Return the errors of groups that get a moment to report them."""
    done, _ = wait(list(running), timeout=_BLAME_S)
    return errors_of(done)


def errors_of(futures: Iterable[Future[Any]]) -> list[BaseException]:
    """Return the errors of what is done."""
    return [error for future in futures if (error := future.exception()) is not None]
