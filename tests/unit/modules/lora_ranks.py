"""A small LLM with low-rank additions, trained by real gloo ranks under several layouts.

Nothing heavy is imported before a rank runs, so that collecting the tests stays cheap.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.topology.grid import Grid
from tests.unit.modules.language_ranks import (
    DEADLINE_S,
    VOCABULARY,
    lane_batch,
    whole_norm,
    world,
)

if TYPE_CHECKING:
    from disagg_train.engine.stage import Stage

LAYOUTS: Mapping[str, Mapping[str, Any]] = {
    "one": {},
    "dp2": {"parallel": {"dp": 2}},
    "cp2": {"parallel": {"cp": 2}},
    "tp2": {"parallel": {"tp": 2}},
    "tp2 sp": {"parallel": {"tp": 2, "sp": True}},
    "recomputed": {"recompute": "full"},
    "split backward": {},
}
MIXTURES: Mapping[str, Mapping[str, Any]] = {
    "one with experts": {"experts": True},
    "ep2": {"experts": True, "parallel": {"dp": 2, "ep": 2}},
}
NUM_RANKS = 2
LORA = {"rank": 4, "alpha": 8.0}
_MICROBATCHES = ((5, 3, 9), (7,))
_NUM_TARGETS = sum(length - 1 for lengths in _MICROBATCHES for length in lengths)

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Seen:
    """What one rank saw in two steps: its share of the losses, and what it holds first."""

    losses: list[float]
    norms: list[float]
    gradients: Tensors
    initial: Tensors
    weights: Tensors
    merged_losses: list[float] = field(default_factory=list)


def train_every_layout(rank: int, folder: Path) -> None:
    """Be one rank of every layout that has it; leave what it saw in ``folder``."""
    import torch

    from disagg_train.modules import cpu

    torch.set_num_threads(1)
    cpu.install()
    seen = {}
    for name, settings in (LAYOUTS | MIXTURES).items():
        degrees = settings.get("parallel", {})
        grid = Grid(**{axis: degrees.get(axis, 1) for axis in ("tp", "cp", "dp")})
        if rank < grid.size:
            with world(rank, grid.size, folder / name.replace(" ", "_")):
                seen[name] = _train(name, grid, _job(grid, **settings))
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(seen))


def _job(
    grid: Grid,
    parallel: Mapping[str, Any] | None = None,
    experts: bool = False,
    **language: Any,
) -> JobConfig:
    model = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2}
    mixture = {"num_experts": 4, "experts_per_token": 2} if experts else {}
    module = {
        "kind": "gpt",
        "group": "language",
        "parallel": dict(parallel or {}),
        "model": model | {"vocab_size": VOCABULARY} | mixture,
        "lora": LORA,
        **language,
    }
    return load_job(
        {
            "name": "lora",
            "groups": {"language": {"ranks": grid.size}},
            "modules": {"language": module},
            "train": {"steps": 2, "global_batch": 4, "optimizer": {"lr": 0.01, "clip_grad": 0.5}},
        }
    )


def _train(name: str, grid: Grid, job: JobConfig) -> Seen:
    import torch

    from disagg_train.engine.inspect import full_gradients, full_weights
    from disagg_train.engine.stage import build_stage
    from disagg_train.modules.process_groups import make_process_groups

    groups = make_process_groups(grid, job.language.parallel.ep, "gloo", DEADLINE_S)
    split = ["language"] if name == "split backward" else []
    stage = build_stage("language", job, groups, torch.device("cpu"), split=split)
    initial = full_weights({"language": stage})
    _draw_additions(stage)
    losses, norms, gradients = [], [], []
    for _ in range(2):
        loss = _accumulate(stage, grid, split_backward=bool(split))
        losses.append(loss if groups.tp.rank() == 0 else 0.0)
        gradients.append(full_gradients({"language": stage}))
        norms.append(whole_norm([stage]))
        stage.optimizer.step(job.train.optimizer.lr, norms[-1])
    weights = full_weights({"language": stage})
    both = [_loss(stage, grid), _merged_loss(job, groups, weights, grid)] if name == "one" else []
    return Seen(losses, norms, gradients[0], initial, weights, both)


def _draw_additions(stage: "Stage") -> None:
    """Give the additions that begin as zero some values, so that the others get gradients."""
    import torch

    from disagg_train.modules.weights import draw, full_shape, named_weights, shard

    tp = stage.groups.tp
    with torch.no_grad():
        for name, parameter in named_weights("language", stage.unwrapped):
            if name.endswith("lora_B"):
                full = draw(1, f"{name}, drawn", full_shape(parameter, tp.size()))
                parameter.copy_(shard(full, parameter, tp.rank(), tp.size()))


def _accumulate(stage: "Stage", grid: Grid, split_backward: bool) -> float:
    stage.optimizer.zero_grad()
    loss = 0.0
    for number, batch in enumerate(_batches(stage, grid)):
        loss += float(stage.forward(number, batch, {}))
        if split_backward:
            stage.backward_input(number, None)
        else:
            stage.backward(number, None)
    if split_backward:
        for number in range(len(_MICROBATCHES)):
            stage.backward_weight(number)
    stage.optimizer.sync(_NUM_TARGETS)
    return loss


def _batches(stage: "Stage", grid: Grid) -> list[Any]:
    at = stage.groups.dp.rank(), stage.groups.cp.rank()
    return [lane_batch(lengths, grid, *at) for lengths in _MICROBATCHES]


def _loss(stage: "Stage", grid: Grid) -> float:
    import torch

    with torch.no_grad():
        return sum(float(stage.unwrapped(batch, {})) for batch in _batches(stage, grid))


def _merged_loss(job: JobConfig, groups: Any, weights: Tensors, grid: Grid) -> float:
    """Return the loss of a model without additions that holds the merged weights."""
    import torch

    from disagg_train.engine.stage import build_stage
    from disagg_train.modules.lora import merged
    from disagg_train.modules.weights import named_weights

    plain = job.language.model_copy(update={"lora": None, "freeze": True})
    plain_job = job.model_copy(update={"modules": {"language": plain}})
    stage = build_stage("language", plain_job, groups, torch.device("cpu"))
    full = merged(weights, job.language.lora)
    with torch.no_grad():
        for name, parameter in named_weights("language", stage.unwrapped):
            parameter.copy_(torch.from_numpy(full.pop(name)))
    assert not full, f"no place for {sorted(full)}"
    return _loss(stage, grid)


def fingerprint(tensors: Tensors) -> dict[str, bytes]:
    """Return every tensor's bytes."""
    return {name: np.ascontiguousarray(tensor).tobytes() for name, tensor in tensors.items()}
