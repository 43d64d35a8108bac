"""How a process ends in which Ray ran: with the status it should have."""

import atexit
import os
import sys

INTERRUPTED, TERMINATED = 130, 143
"""Exit statuses of who was asked to end, by SIGINT or SIGTERM."""


class QuickEnd:
    """Ends the process once all else has ended, without native destructors if Ray was loaded.

    Threads of Ray (``worker.io``, ``gcs_client_io``, gRPC's) outlive ``ray.shutdown()``, and now
    and then one of them meets what a destructor has taken away: exit status 139 after all was
    done and said. Ray ends its own workers in this way, too. Make it before anything else asks to
    be called at the end: what asks later is called earlier.

    Attributes:
        status: of the process; 1, that of an exception that nobody caught, until it is set.
    """

    def __init__(self) -> None:
        self.status = 1
        atexit.register(self._end)

    def _end(self) -> None:
        if "ray" in sys.modules:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.status)
