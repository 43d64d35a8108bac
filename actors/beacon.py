"""What a rank's process lets others read of it, also when it is stopped or gone.

Both are files in memory without a name: an agent on the node opens them through ``/proc`` while
the process lives, and nothing of them is left once both have let go.
"""

import faulthandler
import mmap
import os
import signal

_SIZE_BYTES = 256


class Beacon:
    """Shows what a process is at; showing costs a microsecond."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("disagg-train-beacon")
        os.ftruncate(self.fd, _SIZE_BYTES)
        self._shown = mmap.mmap(self.fd, _SIZE_BYTES)

    def show(self, text: str) -> None:
        """Replace what is shown."""
        self._shown[:] = text.encode()[:_SIZE_BYTES].ljust(_SIZE_BYTES, b"\0")


def read_beacon(fd: int) -> str:
    """Return what is shown."""
    return os.pread(fd, _SIZE_BYTES, 0).rstrip(b"\0").decode(errors="replace")


STACKS_SIGNAL = signal.SIGUSR2
"""Has a process write the stacks of its threads, whichever of them holds the interpreter."""


def write_stacks_on_signal() -> int:
    """Have this process write its stacks to a file when it is asked to; return the file."""
    fd = os.memfd_create("disagg-train-stacks")
    faulthandler.register(STACKS_SIGNAL, file=fd, all_threads=True)
    return fd
