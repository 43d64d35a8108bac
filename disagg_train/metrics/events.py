"""A run's log: one line per event, with the group, the rank and the step that it is about."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from disagg_train.errors import RunStopped

LOG = logging.getLogger("disagg_train")
"""Takes all events; handlers of one's own may be added to it."""
LOG.addHandler(logging.NullHandler())

Redact = Callable[[str], str]
"""Returns a text without the secrets in it."""

_FORMAT = "%(asctime)s %(levelname)s group=%(group)s rank=%(rank)s step=%(step)s %(message)s"
_NOTHING = "-"


def event(
    message: str,
    step: int | None = None,
    group: str | None = None,
    rank: int | None = None,
    level: int = logging.INFO,
    is_note: bool = False,
) -> None:
    """Log an event.

    Args:
        message: what happened; lines are joined into one.
        step: training steps done, or the step that it happened in.
        group: actor group that it is about; the whole job where not given.
        rank: number inside the group.
        level: as ``logging`` has them.
        is_note: whether people are told by other means too.
    """
    about = {"group": group, "rank": rank, "step": step}
    extra = {name: value for name, value in about.items() if value is not None}
    LOG.log(level, "%s", message, extra=extra | {"is_note": is_note})


class LineFormatter(logging.Formatter):
    """Formats an event as one line.

    Args:
        redact: takes secrets out.
        group: that events are about which name none.
        rank: the same.
    """

    def __init__(self, redact: Redact, group: str = _NOTHING, rank: str = _NOTHING) -> None:
        defaults = {"group": group, "rank": rank, "step": _NOTHING}
        super().__init__(_FORMAT, "%Y-%m-%dT%H:%M:%S%z", defaults=defaults)
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        text = self._redact(super().format(record))
        return " | ".join(filter(None, map(str.strip, text.splitlines())))


@contextlib.contextmanager
def attached(handler: logging.Handler) -> Iterator[None]:
    """Have a handler take events as long as this is open, and close it."""
    level = LOG.level
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(level)
        handler.close()


@contextlib.contextmanager
def run_log(folder: Path, redact: Redact) -> Iterator[None]:
    """Append a run's events to ``run.log``, its beginning and its end among them.

    Args:
        folder: the run's output folder.
        redact: takes secrets out.
    """
    handler = logging.FileHandler(folder / "run.log", encoding="utf-8", errors="replace")
    handler.setFormatter(LineFormatter(redact))
    with attached(handler):
        event("the run begins")
        try:
            yield
            event("the run ends")
        except RunStopped as stopped:
            event(f"the run ends: {stopped}")
            raise
        except Exception as error:
            event(f"the run ends: {type(error).__name__}: {error}", level=logging.ERROR)
            raise
        except BaseException as wish:
            left = isinstance(wish, GeneratorExit)
            event(f"the run ends: {'its loop was left' if left else type(wish).__name__}")
            raise


class Told(logging.Handler):
    """Tells events as they happen, but for those that people are told by other means.

    Args:
        say: takes a line.
        redact: takes secrets out.
    """

    def __init__(self, say: Callable[[str], None], redact: Redact) -> None:
        super().__init__()
        self._say = say
        self.setFormatter(LineFormatter(redact))

    def emit(self, record: logging.LogRecord) -> None:
        """Tell an event."""
        if not getattr(record, "is_note", False):
            self._say(self.format(record))
