"""What a run must have in common with one that nothing befell: all that it leaves behind."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from disagg_train.checkpoint.manifest import CheckpointStore
from disagg_train.checkpoint.sharded import ModuleState, storage_reader

State = dict[str, bytes]


@dataclass(frozen=True)
class Traces:
    """What a finished run left in its folder.

    Args:
        steps: number, loss, norm and learning rate of each, in the order of the file.
        samples: of each step.
        evaluations: step and loss of each.
        state: of the last checkpoint, by name: weights, Adam's averages and counts, RNGs.
    """

    steps: list[tuple[Any, ...]]
    samples: list[tuple[int, tuple[int, ...]]]
    evaluations: list[tuple[int, float]]
    state: State

    def differences_to(self, other: "Traces") -> list[str]:
        """Return what is not equal, to the last bit."""
        found = [
            f"{what}: {mine} != {theirs}"
            for what in ("steps", "samples", "evaluations")
            if (mine := getattr(self, what)) != (theirs := getattr(other, what))
        ]
        names = sorted(self.state.keys() | other.state.keys())
        return found + [
            f"state: {name}" for name in names if self.state.get(name) != other.state.get(name)
        ]

    @property
    def times_seen(self) -> set[int]:
        """How often samples are in a committed step."""
        return set(Counter(key for _, keys in self.samples for key in keys).values())


def traces_of(output: Path) -> Traces:
    """Return what a finished run left."""
    wanted = ("step", "loss", "grad_norm", "lr", "num_target_tokens", "skipped")
    return Traces(
        steps=[tuple(line[name] for name in wanted) for line in _lines(output, "metrics")],
        samples=[(line["step"], tuple(line["keys"])) for line in _lines(output, "samples")],
        evaluations=[(line["step"], line["loss"]) for line in _lines(output, "evaluations")],
        state=state_of(output),
    )


def state_of(output: Path) -> State:
    """Return the bytes of every tensor of a run's last checkpoint, frozen weights included."""
    store = CheckpointStore(str(output / "checkpoints"))
    newest = store.steps()[-1]
    store.verify(newest)
    folder, found = Path(store.address(newest)), {}
    for module in sorted(path for path in folder.iterdir() if path.is_dir()):
        saved = ModuleState(storage_reader(str(module)), str(module))
        for name in saved.names:
            found[name] = saved.read(name).reshape(-1).view(torch.uint8).numpy().tobytes()
    return found


def unfinished(output: Path) -> list[str]:
    """Return what a finished run should not have left: halves of files and of checkpoints."""
    halves = [str(path) for path in output.rglob("*") if path.suffix in (".partial", ".tmp")]
    store = CheckpointStore(str(output / "checkpoints"))
    complete = {Path(store.address(step)).name for step in store.steps()}
    folders = {path.name for path in (output / "checkpoints").iterdir()}
    return halves + sorted(folders - complete)


def _lines(output: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / f"{name}.jsonl").read_text().splitlines()]
