"""Takes secrets out of texts that others wrote: errors, stacks, reasons."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from disagg_train.config.secret_values import MASK, is_random, is_secret_name, masked

_SHORTEST = 6
"""Letters of a value that is looked for in texts; shorter ones stand in words."""
_ENVIRONMENTS = ("env", "environment")
_WORDS = re.compile(r"[^\s'\"`,;:.?&()<>\[\]{}=]+")


class Redaction:
    """Replaces what looks like a secret, or is a value known to be one.

    Args:
        values: known secrets, on top of those of this process's environment.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._values = sorted({v for v in values if len(v) >= _SHORTEST}, key=len, reverse=True)

    @classmethod
    def of(cls, job: Mapping[str, Any]) -> "Redaction":
        """Return the redaction of what a job and this process hold.

        All values of the environment that a job names count, and those of other fields whose
        names are a secret's.

        Args:
            job: as plain data.
        """
        return cls(_secret_values(job, hidden=False))

    def __call__(self, text: str) -> str:
        """Return a text without secrets."""
        for value in self._values:
            text = text.replace(value, MASK)
        return _WORDS.sub(lambda word: MASK if is_random(word[0]) else word[0], masked(text))


def _secret_values(node: Any, hidden: bool) -> Iterator[str]:
    """Yield the values of fields below an environment or the name of a secret."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            is_hidden = hidden or name in _ENVIRONMENTS or is_secret_name(str(name))
            yield from _secret_values(value, is_hidden)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _secret_values(value, hidden)
    elif hidden and isinstance(node, str):
        yield node
