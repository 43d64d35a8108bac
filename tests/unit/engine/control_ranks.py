"""A small LLM on one or two gloo ranks, with parts frozen, rates of its own, or 16-bit weights.

Nothing heavy is imported before a rank runs, so that collecting the tests stays cheap.
"""

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

NUM_RANKS = 2
STEPS = 10
LR, DECAY = 0.01, 0.5
_MICROBATCHES = ((5, 3, 9), (7,))
_NUM_TARGETS = sum(length - 1 for lengths in _MICROBATCHES for length in lengths)

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Precise:
    """Training in one precision: losses and norms of all steps, and what weights are made of."""

    losses: list[float]
    norms: list[float]
    dtypes: set[str]
    rows_dtype: str
    masters: Tensors


def watch_controls(rank: int, folder: Path) -> None:
    """Be a rank of every experiment; leave what it saw in ``folder``."""
    import torch

    from disagg_train.modules import cpu

    torch.set_num_threads(1)
    cpu.install()
    alone: dict[str, Callable[[], Any]] = {
        "decay alone": lambda: _decay_alone(_job(weight_decay=DECAY)),
        "job's rate": lambda: _one_step(_job(), 2 * LR),
        "own rate": lambda: _one_step(_job(lr=2 * LR), LR),
        "frozen": lambda: _before_and_after(
            _job(freeze=["gpt.decoder.layers.0.*", "*norm*", "gpt.embedding.*"])
        ),
        "frozen and computed again": lambda: _before_and_after(
            _job(freeze=["gpt.embedding.*"], recompute="full")
        ),
        "no such name": lambda: _error_of(_job(freeze=["gpt.decoder.layers.0.*", "gpt.head.*"])),
    }
    together: dict[str, tuple[Mapping[str, Any], str]] = {
        "fp32": ({}, "fp32"),
        "bf16": ({}, "bf16"),
        "bf16 on dp2": ({"dp": 2}, "bf16"),
        "bf16 on tp2": ({"tp": 2, "sp": True}, "bf16"),
        "fp16 on tp2": ({"tp": 2}, "fp16"),
    }
    seen = {}
    for name, (degrees, precision) in together.items():
        grid = Grid(**{axis: degrees.get(axis, 1) for axis in ("tp", "dp")})
        if rank < grid.size:
            with world(rank, grid.size, folder / name.replace(" ", "_")):
                seen[name] = _precise(_job(precision, degrees), grid)
    for name, watch in alone.items() if rank == 0 else ():
        with world(0, 1, folder / name.replace(" ", "_")):
            seen[name] = watch()
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(seen))


def _job(
    precision: str = "fp32", parallel: Mapping[str, Any] | None = None, **language: Any
) -> JobConfig:
    model = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2}
    degrees = dict(parallel or {})
    module = {
        "kind": "gpt",
        "group": "language",
        "parallel": degrees,
        "model": model | {"vocab_size": VOCABULARY},
        **language,
    }
    return load_job(
        {
            "name": "controls",
            "groups": {"language": {"ranks": degrees.get("tp", 1) * degrees.get("dp", 1)}},
            "modules": {"language": module},
            "train": {
                "steps": STEPS,
                "global_batch": 4,
                "precision": precision,
                "optimizer": {"lr": LR, "weight_decay": 0.0},
            },
        }
    )


def _stage(job: JobConfig, grid: Grid | None = None) -> "Stage":
    import torch

    from disagg_train.engine.stage import build_stage
    from disagg_train.modules.process_groups import make_process_groups

    groups = make_process_groups(grid or Grid(), 1, "gloo", DEADLINE_S)
    return build_stage("language", job, groups, torch.device("cpu"))


def _weights(stage: "Stage") -> Tensors:
    from disagg_train.engine.inspect import full_weights

    return full_weights({"language": stage})


def _accumulate(stage: "Stage", grid: Grid, loss_scale: float | None = None) -> float:
    import torch

    stage.optimizer.zero_grad()
    grad = None if loss_scale is None else torch.tensor(loss_scale)
    loss = 0.0
    for number, lengths in enumerate(_MICROBATCHES):
        batch = lane_batch(lengths, grid, stage.groups.dp.rank(), 0)
        loss += float(stage.forward(number, batch, {}))
        stage.backward(number, grad)
    stage.optimizer.sync(_NUM_TARGETS, loss_scale or 1.0)
    return loss / _NUM_TARGETS


def _decay_alone(job: JobConfig) -> tuple[Tensors, Tensors]:
    """Return the weights before and after a step whose gradients are all zero."""
    stage = _stage(job)
    before = _weights(stage)
    stage.optimizer.zero_grad()
    stage.optimizer.sync(1)
    stage.optimizer.step(LR, whole_norm([stage]))
    return before, _weights(stage)


def _one_step(job: JobConfig, rate: float) -> Tensors:
    stage = _stage(job)
    _accumulate(stage, Grid())
    stage.optimizer.step(rate, whole_norm([stage]))
    return _weights(stage)


def _before_and_after(job: JobConfig) -> tuple[Tensors, Tensors]:
    stage = _stage(job)
    before = _weights(stage)
    _accumulate(stage, Grid())
    stage.optimizer.step(LR, whole_norm([stage]))
    return before, _weights(stage)


def _error_of(job: JobConfig) -> str:
    from disagg_train.engine.freezing import check_patterns
    from disagg_train.errors import ConfigError

    stage = _stage(job)
    try:
        check_patterns("language", job.language, [stage.unwrapped])
    except ConfigError as error:
        return str(error)
    return ""


def _precise(job: JobConfig, grid: Grid) -> Precise:
    stage, losses, norms = _stage(job, grid), [], []
    loss_scale = 64.0 if job.train.precision == "fp16" else None
    for _ in range(STEPS):
        losses.append(_accumulate(stage, grid, loss_scale))
        norms.append(whole_norm([stage]))
        stage.optimizer.step(LR, norms[-1])
    dtypes = {str(parameter.dtype) for parameter in stage.unwrapped.parameters()}
    rows = stage.forward(0, None, {})
    return Precise(losses, norms, dtypes, str(rows.dtype), _weights(stage))
