"""What the log of a job says: how far it is, and what it saved as it was told to stop."""

import re

_STEP = re.compile(r"\bstep +(\d+)  (loss .*)$")
_SAVED = re.compile(r"\bstopped after (\d+) steps; a checkpoint is saved")
_MISSING = re.compile(r"No module named '?(disagg_train|actors)\b|python: (command )?not found")


class LogReader:
    """Cuts a log into lines, and takes from them how far the job is."""

    def __init__(self) -> None:
        self._rest = ""
        self.step = 0
        """Newest step that is done."""
        self.numbers = ""
        """What was said of it."""
        self.saved_after: int | None = None
        """Steps behind the checkpoint that it saved as it was told to stop, if it did."""
        self.lacks_package = False
        """Whether a node has no disagg_train, or no Python."""

    def lines(self, text: str) -> list[str]:
        """Return the lines that a piece of the log completes."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._read(line)
        return lines

    def end(self) -> list[str]:
        """Return the last line, if no newline ended it."""
        return self.lines("\n") if self._rest else []

    def _read(self, line: str) -> None:
        if step := _STEP.search(line):
            self.step, self.numbers = int(step[1]), step[2]
        elif saved := _SAVED.search(line):
            self.saved_after = int(saved[1])
        elif _MISSING.search(line):
            self.lacks_package = True


def read_log(text: str) -> LogReader:
    """Return what a whole log says."""
    reader = LogReader()
    reader.lines(text)
    reader.end()
    return reader
