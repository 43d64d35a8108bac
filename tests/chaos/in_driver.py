"""Moments in the driver's life, marked by wrapping methods of the product where they pass."""

from typing import Any

from actors.session import Session
from disagg_train.checkpoint import manifest
from disagg_train.checkpoint.manifest import CheckpointStore, Manifest
from disagg_train.metrics.run_files import RunFiles
from disagg_train.metrics.sinks import JsonLines
from tests.chaos.faults import Fuse
from tests.chaos.wrapping import after, before


def arm_driver(fuse: Fuse) -> None:
    """Let faults happen in this process, which drives the run."""

    def recording(files: RunFiles, record: Any, keys: Any) -> None:
        del files, keys
        fuse.step = record.step

    def committed(store: CheckpointStore, written: Manifest) -> None:
        del store
        fuse.here("checkpoint committed", written.step)

    def beginning(store: CheckpointStore, steps_done: int) -> None:
        del store
        fuse.here("beginning a checkpoint", steps_done)

    before(RunFiles, "add_step", recording)
    before(JsonLines, "write", lambda *_: fuse.here("recording a step"))
    after(CheckpointStore, "begin", beginning)
    before(manifest, "_sync_folder", lambda *_: fuse.here("writing a manifest"))
    after(CheckpointStore, "commit", committed)
    before(Session, "renew", lambda *_: fuse.here("recovering"))
