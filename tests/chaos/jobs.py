"""The jobs that faults befall: small, on two or three ranks, each sample seen exactly once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from tests.chaos.faults import Fault
from tests.parity.jobs import Degrees, small_job

NUM_STEPS = 24
_BATCH = 11
_TP: Degrees = {"tp": 2, "sp": True}
LAYOUTS: Mapping[str, Mapping[str, Any]] = {
    "dp": {"vision": {}, "language": {"dp": 2}},
    "tp": {"vision": {}, "language": _TP},
    "colocated": {"vision": {"dp": 2}, "language": _TP, "colocated": True},
    "pp": {"vision": {}, "language": {"pp": 2}},
}


def chaos_job(
    layout: str, output: Path, faults: Sequence[Fault] = (), overrides: Sequence[str] = ()
) -> JobConfig:
    """Return a job of one of the layouts, with the faults that befall it.

    Args:
        layout: name of the layout.
        output: folder of the run; the marks of its faults lie beside it.
        faults: of the run.
        overrides: of the job.
    """
    content: dict[str, Any] = small_job(**LAYOUTS[layout]).model_dump(mode="json")
    marks = marks_folder(output)
    marks.mkdir(parents=True, exist_ok=True)
    options = {"faults": [fault.as_dict() for fault in faults], "marks": str(marks)}
    content["data"] = {
        "kind": "tests.chaos.source:FaultySource",
        "options": content["data"]["options"] | options | {"samples": NUM_STEPS * _BATCH},
    }
    content["train"] |= {
        "steps": NUM_STEPS,
        "global_batch": _BATCH,
        "list_samples": True,
        "evaluation": {"every_steps": 12, "samples": 6},
    }
    content["checkpoint"] = {"every_steps": 5, "keep": 2}
    content["recovery"] = {
        "copy_every_steps": 2,
        "max_restarts": 100,
        "backoff_s": 0.05,
        "replacement_s": 60.0,
    }
    content["deadlines"] = {"exchange_s": 6.0, "setup_s": 120.0, "step_s": 60.0}
    return load_job(content | {"output": str(output)}, overrides)


def marks_folder(output: Path) -> Path:
    """Return where the marks of a run's faults lie."""
    return output.with_name(f"{output.name}-marks")
