"""Keeps off the terminal, and out of a notebook's cell, what Ray prints of its own accord."""

import re

from ray._private import worker

_SAID_BY_RAY = "A worker died or was killed"
"""Begin of a long text that comes for every death; our report says more."""


def hush_ray() -> None:
    """Skip Ray's texts of dead workers from now on, in this process.

    Ray's own setting for it is read when Ray is imported, which a notebook may have done long
    before. Where somebody has set that, it stays.
    """
    printed = getattr(worker, "stdout_deduplicator", None)
    if printed is not None and getattr(printed, "skip_re", None) is None:
        printed.skip_re = re.compile(_SAID_BY_RAY)
