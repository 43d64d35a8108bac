"""Pretrained encoders on gloo ranks under several layouts: their outputs and their gradients.

Nothing heavy is imported before a rank runs, so that collecting the tests stays cheap.
"""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from disagg_train.boundary.layouts import Side, holding_of
from disagg_train.boundary.of_job import module_side
from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.data.source import Sample, Split
from disagg_train.planner.step_plan import SampleSize, Slot, StepPlan
from disagg_train.topology.grid import Grid
from tests.unit.boundary.views import source_layout
from tests.unit.modules.language_ranks import DEADLINE_S, world
from tests.unit.modules.towers import FAMILIES, NUM_LAYERS, Family

if TYPE_CHECKING:
    from megatron.core.process_groups_config import ProcessGroupCollection

    from disagg_train.engine.stage import Stage
    from disagg_train.modules.batch import EncoderBatch

LAYOUTS: Mapping[str, Mapping[str, Any]] = {
    "one": {},
    "tp2": {"tp": 2},
    "tp2 sp": {"tp": 2, "sp": True},
    "cp2": {"cp": 2},
    "pp2": {"pp": 2},
}

Tensors = dict[str, NDArray[Any]]
Case = tuple[str, int, bool]
"""A family, a feature layer, and whether the last norm follows it."""


@dataclass
class Seen:
    """What one rank saw under one layout.

    Args:
        rows: per case, its rows of features by token; nothing but on the last stage.
        gradients: per family, of one backward of its first case; not with pipeline stages.
        weights: per family, what its first case was filled with.
    """

    rows: dict[Case, dict[int, NDArray[Any]]] = field(default_factory=dict)
    gradients: dict[str, Tensors] = field(default_factory=dict)
    weights: dict[str, Tensors] = field(default_factory=dict)


def grid_of(layout: str) -> Grid:
    """Return a layout's ranks."""
    return Grid(**{axis: LAYOUTS[layout].get(axis, 1) for axis in ("tp", "cp", "pp")})


def encode(rank: int, layout: str, towers: Path, folder: Path) -> None:
    """Be one rank of a layout, with the towers in a folder; leave what it saw in another."""
    import torch

    from disagg_train.modules import cpu
    from disagg_train.modules.process_groups import make_process_groups

    torch.set_num_threads(1)
    cpu.install()
    grid = grid_of(layout)
    with world(rank, grid.size, folder / "world"):
        groups = make_process_groups(grid, 1, "gloo", DEADLINE_S)
        seen = _see(layout, towers, rank, groups)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(seen))


def cases(layout: str) -> Iterator[Case]:
    """Yield what can be run: pipeline stages have equally many layers."""
    for kind, family in FAMILIES.items():
        for layer, norm in family.outputs:
            if (NUM_LAYERS + 1 + layer) % LAYOUTS[layout].get("pp", 1) == 0:
                yield kind, layer, norm


def _see(layout: str, folder: Path, rank: int, groups: "ProcessGroupCollection") -> Seen:
    import torch

    from disagg_train.engine.inspect import full_weights
    from disagg_train.engine.stage import build_stage

    seen = Seen()
    for case in cases(layout):
        family = FAMILIES[case[0]]
        job = job_of(case, LAYOUTS[layout], folder)
        trial = _Trial(family, job, rank)
        stage = build_stage("vision", job, groups, torch.device("cpu"))
        with torch.no_grad():
            seen.rows[case] = trial.features(stage)
        if case[1:] == family.outputs[0]:
            seen.weights[family.kind] = full_weights({"vision": stage})
            if groups.pp.size() == 1:
                seen.gradients[family.kind] = trial.gradients(stage)
    return seen


class _Trial:
    """A family's inputs in one microbatch of three samples, the second of which is text only."""

    def __init__(self, family: Family, job: JobConfig, rank: int) -> None:
        self._family, self._job, self._rank = family, job, rank
        counts = [family.tokens[:1], (), family.tokens[1:]]
        sizes = tuple(_size(key, each, family.merge) for key, each in enumerate(counts))
        self._plan = StepPlan(0, sizes, {"vision": (((0, 1, 2),),)})

    @property
    def _side(self) -> Side:
        return module_side(self._job, "vision")

    def features(self, stage: "Stage") -> dict[int, NDArray[Any]]:
        """Return this rank's rows before the projector, by token."""
        import torch
        import torch.distributed as dist

        from disagg_train.modules.batch import PREVIOUS_STAGE

        batch, pp, inputs = self._batch(), stage.groups.pp, {}
        if pp.rank() > 0:
            rows = batch.packing.positions_RT.shape[1]
            inputs[PREVIOUS_STAGE] = torch.empty(rows, stage.unwrapped.config.hidden_size)
            dist.recv(inputs[PREVIOUS_STAGE], 0)
        rows_PD = stage.unwrapped.features(batch, inputs)
        if pp.rank() < pp.size() - 1:
            dist.send(rows_PD, 1)
            return {}
        merged = rows_PD.reshape(rows_PD.shape[0] // self._family.merge, -1).numpy()
        return {token: merged[row] for token, row in self._tokens().items()}

    def gradients(self, stage: "Stage") -> Tensors:
        """Return the gradients of a sum of the projector's rows, weighted by token."""
        import torch

        from disagg_train.engine.inspect import full_gradients

        assert stage.optimizer is not None
        stage.optimizer.zero_grad()
        rows_TD = stage.forward(0, self._batch(), {})
        grad_TD = torch.zeros_like(rows_TD)
        for token, row in self._tokens().items():
            grad_TD[row] = torch.cos(torch.arange(rows_TD.shape[1]) + token)
        stage.backward(0, grad_TD)
        stage.optimizer.sync(1)
        return full_gradients({"vision": stage})

    def _tokens(self) -> dict[int, int]:
        """Return the row of each token that this rank holds."""
        layout = source_layout(self._plan, self._side, [0])
        holding = holding_of(layout, self._side.places[self._rank])
        assert holding is not None
        return dict(zip(holding.token_ids, holding.rows, strict=True))

    def _batch(self) -> "EncoderBatch":
        import torch

        from disagg_train.engine.batches import EncoderBatches

        module, device = self._job.encoders["vision"], torch.device("cpu")
        maker = EncoderBatches(module, self._side, self._rank, _Inputs(self._family), device)
        return maker.make(self._plan, 0, {})


class _Inputs:
    """A source of the three samples."""

    def __init__(self, family: Family) -> None:
        self._inputs = family.inputs()

    def load(self, key: int) -> Sample:
        inputs = (self._inputs[:1], [], self._inputs[1:])[key]
        length = 64 if key == 1 else 1000
        return Sample(key, np.zeros(length, np.int64), np.full(length, -1), {"vision": inputs})

    def sizes(self, split: Split) -> Sequence[SampleSize]:
        raise NotImplementedError

    def text(self, token_ids: Sequence[int]) -> str:
        raise NotImplementedError


def _size(key: int, counts: Sequence[int], merge: int) -> SampleSize:
    if not counts:
        return SampleSize(key, 64, 0)
    slots = tuple(Slot(100 * place, count) for place, count in enumerate(counts))
    inputs = tuple(count * merge for count in counts)
    return SampleSize(key, 1000, 0, {"vision": slots}, {"vision": inputs})


def job_of(case: Case, degrees: Mapping[str, Any], folder: Path) -> JobConfig:
    """Return a job with an encoder of the checkpoint that ``folder`` has of its family."""
    return load_job(_job(case, degrees, folder))


def _job(case: Case, degrees: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    kind, layer, norm = case
    ranks = int(np.prod([degrees.get(axis, 1) for axis in ("tp", "cp", "pp")]))
    gpt = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
    return {
        "name": "encoders",
        "groups": {"encoders": {"ranks": ranks}, "language": {"ranks": 1}},
        "modules": {
            "vision": {
                "kind": kind,
                "group": "encoders",
                "pretrained": str(folder / kind),
                "parallel": dict(degrees),
                "model": {"feature_layer": layer, "last_norm": norm},
                "projector": {"merge": FAMILIES[kind].merge},
            },
            "language": {"kind": "gpt", "group": "language", "model": gpt},
        },
        "train": {"steps": 1, "global_batch": 3, "optimizer": {"lr": 0.01}},
    }
