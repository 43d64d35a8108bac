"""What was measured of modules and links, and the files that keep it.

A folder holds ``modules/`` and ``links/``, a JSON file per measured module in its degrees on its
hardware, and per kind of link. Each is written in one go, so a profile that was interrupted goes
on where it was.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from disagg_train.config.base import Config
from disagg_train.config.job import JobConfig
from disagg_train.config.modules import EncoderModule, ParallelConfig, Recompute
from disagg_train.errors import DataError
from disagg_train.planner.fit import PassFit, TransferFit
from disagg_train.schedule.ops import OpKind

DEFAULT_FOLDER = Path("~/.cache/disagg_train/profiles")

_COSTS_NOTHING = {"group", "parallel", "recompute", "pretrained", "lr", "weight_decay"}
"""Fields of a module that say nothing of what it costs, or are told apart from what it is."""


class StageFit(Config):
    """What one pipeline stage takes."""

    passes: dict[OpKind, PassFit]
    """Forwards and backwards, as the schedule had them."""
    once_s: dict[OpKind, float] = {}
    """Seconds of what comes once a step: gradient sync and update."""


class ModuleMeasurement(Config):
    """A module in some degrees on some hardware."""

    module: str
    """Its name in the job that was run."""
    signature: dict[str, Any]
    """What it is (``signature``)."""
    parallel: ParallelConfig
    """How it was cut; dp says how many replicas summed gradients."""
    recompute: Recompute
    """What its backward computed again."""
    hardware: str
    """What its ranks computed on."""
    versions: dict[str, str]
    """Of the packages that computed."""
    stages: tuple[StageFit, ...]
    """In order."""
    tokens: float
    """Of the median microbatch of a lane."""
    squares: float
    """Sum of its squared lengths."""
    activation_ratio: float | None = None
    """Counted bytes of activations over computed ones; None where none were counted."""
    step_error: float | None = None
    """Median error of the simulated step times of the run, by what was measured in it."""

    @property
    def file_name(self) -> str:
        """Name of its file: one for the same module, degrees and hardware."""
        degrees = degrees_of(self.parallel, self.recompute)
        return module_file_name(self.module, self.signature, degrees, self.hardware)


class LinkMeasurement(Config):
    """Transfers between ranks of one node, or of different ones."""

    ends: tuple[str, ...]
    """What the ranks at the ends computed on: one kind, or two."""
    crosses_nodes: bool
    """Whether the ends are on different nodes."""
    ranks_per_node: int
    """Most ranks of the run on one node."""
    edges: tuple[str, ...]
    """Boundaries and stage links that were measured."""
    fit: TransferFit
    """Latency and bandwidth."""

    @property
    def file_name(self) -> str:
        """Name of its file."""
        kind = "network" if self.crosses_nodes else "node"
        return f"{kind}-{_digest(self.ends, self.edges)}.json"


def signature(job: JobConfig, name: str) -> dict[str, Any]:
    """Return all that decides what a module costs, apart from how it is cut."""
    module = job.modules[name]
    found: dict[str, Any] = module.model_dump(mode="json", exclude=_COSTS_NOTHING)
    found["precision"] = job.train.precision
    if isinstance(module, EncoderModule):
        found["output_width"] = job.language.model.hidden_size
        found["runs_backward"] = module.trainable
    else:
        found["runs_backward"] = any(each.trainable for each in job.modules.values())
    return found


def degrees_of(parallel: ParallelConfig, recompute: Recompute) -> dict[str, Any]:
    """Return what is told apart of one module: how a replica is cut, and what it recomputes."""
    return parallel.model_dump(exclude={"dp"}) | {"recompute": recompute}


def module_file_name(
    module: str, signed: Mapping[str, Any], degrees: Mapping[str, Any], hardware: str
) -> str:
    """Return the name of the file of a module in some degrees on some hardware."""
    return f"{module}-{describe_degrees(degrees)}-{_digest(signed, degrees, hardware)}.json"


def describe_degrees(degrees: Mapping[str, Any]) -> str:
    """Return degrees for people: those that are not the default, ``tp2-sp-pp2``."""
    parts = [f"{axis}{degrees[axis]}" for axis in ("tp", "cp", "pp", "vpp", "ep")]
    shown = [part for part in parts if not part.removesuffix("1").isalpha()]
    shown += ["sp"] * degrees["sp"]
    shown += [f"recompute_{degrees['recompute']}"] * (degrees["recompute"] != "none")
    return "-".join(shown) or "tp1"


def _digest(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def write_module(folder: Path, measured: ModuleMeasurement) -> Path:
    """Write a module's measurement, in place of an older one; return its file."""
    return _write(folder / "modules" / measured.file_name, measured)


def write_link(folder: Path, measured: LinkMeasurement) -> Path:
    """Write a link's measurement, in place of an older one; return its file."""
    return _write(folder / "links" / measured.file_name, measured)


def file_of(folder: Path, job: JobConfig, name: str, hardware: str) -> Path:
    """Return where a folder keeps a module of a job, as it is cut there."""
    module = job.modules[name]
    degrees = degrees_of(module.parallel, module.recompute)
    return folder / "modules" / module_file_name(name, signature(job, name), degrees, hardware)


def read_module(path: Path) -> ModuleMeasurement:
    """Return a measured module.

    Raises:
        DataError: the file is no measurement.
    """
    return _read(path, ModuleMeasurement)


def read_modules(folder: Path) -> list[ModuleMeasurement]:
    """Return the measured modules of a folder.

    Raises:
        DataError: a file is no measurement.
    """
    return [read_module(path) for path in sorted((folder / "modules").glob("*.json"))]


def read_links(folder: Path) -> list[LinkMeasurement]:
    """Return the measured links of a folder.

    Raises:
        DataError: a file is no measurement.
    """
    return [_read(path, LinkMeasurement) for path in sorted((folder / "links").glob("*.json"))]


def _read[Kind: Config](path: Path, kind: type[Kind]) -> Kind:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(
            f"{path} is no measurement of this version ({error}); remove it and profile again"
        ) from None


def _write(path: Path, measured: Config) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(measured.model_dump_json(indent=2) + "\n")
    beside.replace(path)
    return path
