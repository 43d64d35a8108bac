"""The data source that brings faults along: what a job reads is imported by every process."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from disagg_train.data.digits import DigitsSource
from disagg_train.data.processors import Processor
from tests.chaos.faults import Fault, Fuse


class FaultySource(DigitsSource):
    """Digits as ever. Opening it arms the process.

    Args:
        encoders: as for digits.
        faults: of the run, as plain data.
        marks: folder of their marks.
        options: as for digits.
    """

    _armed = False

    def __init__(
        self,
        encoders: Mapping[str, Processor],
        faults: Sequence[Mapping[str, Any]],
        marks: str,
        **options: Any,
    ) -> None:
        super().__init__(encoders, **options)
        if not FaultySource._armed:
            FaultySource._armed = True
            _arm(Fuse([Fault.from_dict(fault) for fault in faults], Path(marks)))


def _arm(fuse: Fuse) -> None:
    if _is_rank():
        from tests.chaos.in_ranks import arm_rank

        arm_rank(fuse)
    else:
        from tests.chaos.in_driver import arm_driver

        arm_driver(fuse)


def _is_rank() -> bool:
    return ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None
