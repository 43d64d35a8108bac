"""A small LLM with experts, trained by real gloo ranks under several layouts.

Nothing heavy is imported before a rank runs, so that collecting the tests stays cheap.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

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
    "dp2": {"dp": 2},
    "ep2": {"dp": 2, "ep": 2},
    "ep4": {"dp": 4, "ep": 4},
    "ep2 of dp4": {"dp": 4, "ep": 2},
    "tp2": {"tp": 2, "sp": True},
    "tp2 ep2": {"tp": 2, "sp": True, "dp": 2, "ep": 2},
    "cp2 ep2": {"cp": 2, "ep": 2},
    "cp2 ep4": {"cp": 2, "dp": 2, "ep": 4},
}
MOST_RANKS = 4
NUM_EXPERTS, EXPERTS_PER_TOKEN = 4, 2
_MICROBATCHES = ((5, 3, 9), (7,))
_NUM_TARGETS = sum(length - 1 for lengths in _MICROBATCHES for length in lengths)

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Seen:
    """What one rank saw in two steps: its share of the losses, and what it holds first.

    ``mixed`` is what the first layer's experts made of ``mixture_input()`` before the steps.
    """

    losses: list[float]
    norms: list[float]
    mixed: NDArray[Any]
    initial: Tensors
    gradients: Tensors
    weights: Tensors


def train_every_layout(rank: int, folder: Path) -> None:
    """Be one rank of every layout that has it; leave what it saw in ``folder``."""
    import torch

    from disagg_train.modules import cpu

    torch.set_num_threads(1)
    cpu.install()
    seen = {}
    for name, degrees in LAYOUTS.items():
        grid = Grid(**{axis: degrees.get(axis, 1) for axis in ("tp", "cp", "dp")})
        if rank < grid.size:
            with world(rank, grid.size, folder / name.replace(" ", "_")):
                seen[name] = _train(grid, degrees)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(seen))


def _train(grid: Grid, degrees: Mapping[str, Any]) -> Seen:
    import torch

    from disagg_train.engine.inspect import full_gradients, full_weights
    from disagg_train.engine.stage import build_stage
    from disagg_train.modules.process_groups import make_process_groups

    job = load_job(_job(grid, degrees))
    groups = make_process_groups(grid, degrees.get("ep", 1), "gloo", DEADLINE_S)
    stage = build_stage("language", job, groups, torch.device("cpu"))
    stages, losses, norms, gradients = {"language": stage}, [], [], []
    initial, mixed = full_weights(stages), _mix(stage)
    for _ in range(2):
        loss = _accumulate(stage, grid, groups.dp.rank(), groups.cp.rank())
        losses.append(loss if groups.tp.rank() == 0 else 0.0)
        gradients.append(full_gradients(stages))
        norms.append(whole_norm([stage]))
        stage.optimizer.step(job.train.optimizer.lr, norms[-1])
    return Seen(losses, norms, mixed, initial, gradients[0], full_weights(stages))


def mixture_input() -> NDArray[np.float32]:
    """Return some rows to give to a layer's experts."""
    return np.cos(np.arange(7 * 32, dtype=np.float32) ** 2).reshape(7, 32)


def _mix(stage: "Stage") -> NDArray[Any]:
    import torch

    with torch.no_grad():
        rows, _ = stage.unwrapped.gpt.decoder.layers[0].mlp(
            torch.from_numpy(mixture_input()).unsqueeze(1)
        )
    return rows.squeeze(1).numpy()


def _job(grid: Grid, degrees: Mapping[str, Any]) -> dict[str, Any]:
    model = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": VOCABULARY}
    experts = {"num_experts": NUM_EXPERTS, "experts_per_token": EXPERTS_PER_TOKEN}
    return {
        "name": "experts",
        "groups": {"language": {"ranks": grid.size}},
        "modules": {
            "language": {
                "kind": "gpt",
                "group": "language",
                "parallel": dict(degrees),
                "model": model | experts | {"expert_ffn_hidden_size": 24},
            }
        },
        "train": {"steps": 2, "global_batch": 4, "optimizer": {"lr": 0.01, "clip_grad": 0.5}},
    }


def _accumulate(stage: "Stage", grid: Grid, dp_rank: int, cp_rank: int) -> float:
    stage.optimizer.zero_grad()
    loss = 0.0
    for number, lengths in enumerate(_MICROBATCHES):
        batch = lane_batch(lengths, grid, dp_rank, cp_rank)
        loss += float(stage.forward(number, batch, {}))
        stage.backward(number, None)
    stage.optimizer.sync(_NUM_TARGETS)
    return loss
