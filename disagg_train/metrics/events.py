"""A run's log: one line per event, with the group, the rank and the step that it is about."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

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
        lines = filter(None, map(str.strip, super().format(record).splitlines()))
        return self._redact(" | ".join(lines))


class Attached:
    """A handler that takes events as long as this is open; a context manager.

    Args:
        handler: takes them.
    """

    def __init__(self, handler: logging.Handler) -> None:
        self._handler, self._level = handler, LOG.level
        LOG.addHandler(handler)
        LOG.setLevel(logging.INFO)

    def close(self) -> None:
        """Let go of the handler."""
        LOG.removeHandler(self._handler)
        LOG.setLevel(self._level)
        self._handler.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        del kind, error, at
        self.close()


class RunLog(Attached):
    """Appends a run's events to ``run.log``, its beginning and its end among them.

    Args:
        folder: the run's output folder.
        redact: takes secrets out.
    """

    def __init__(self, folder: Path, redact: Redact) -> None:
        handler = logging.FileHandler(folder / "run.log", encoding="utf-8", errors="replace")
        handler.setFormatter(LineFormatter(redact))
        super().__init__(handler)
        event("the run begins")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Note how the run ended."""
        if isinstance(error, Exception):
            event(f"the run ends: {type(error).__name__}: {error}", level=logging.ERROR)
        else:
            event("the run ends" + (f": {kind.__name__}" if kind else ""))
        super().__exit__(kind, error, at)


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
