"""A small LLM with tied embeddings, trained by real gloo ranks under several layouts.

Nothing heavy is imported before a rank runs, so that collecting the tests stays cheap.
"""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    from torch import Tensor

    from disagg_train.engine.stage import Stage
    from disagg_train.modules.batch import LanguageBatch

MICROBATCHES = ((5, 3, 9), (7,))
NUM_TARGETS = sum(length - 1 for lengths in MICROBATCHES for length in lengths)
QUERY_GROUPS = 2
NUM_STEPS = 3
MOST_RANKS = 4

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """A layout of the LLM, and what is done to it."""

    degrees: Mapping[str, Any] = field(default_factory=dict)
    tied: bool = True
    frozen: bool = False
    split: Sequence[str] = ()
    """Stages whose backward comes in two parts."""


CASES: Mapping[str, Case] = {
    "one": Case(),
    "pp2": Case({"pp": 2}),
    "pp4": Case({"pp": 4}),
    "pp2 vpp2": Case({"pp": 2, "vpp": 2}),
    "pp2 tp2": Case({"pp": 2, "tp": 2, "sp": True}),
    "pp2 dp2": Case({"pp": 2, "dp": 2}),
    "pp2 cp2": Case({"pp": 2, "cp": 2}),
    "split backward": Case(split=["language"]),
    "pp2 split backward": Case({"pp": 2}, split=["language.0", "language.1"]),
    "untied": Case(tied=False),
    "untied pp2": Case({"pp": 2}, tied=False),
    "frozen pp2": Case({"pp": 2}, frozen=True),
}


@dataclass
class Seen:
    """What one rank saw: its share of each step's loss, and what it holds first.

    ``copies`` are this rank's part of the tied matrix before the steps and after each, and
    ``answers`` and ``scores`` an evaluation before the steps and one after them.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    gradients: list[Tensors] = field(default_factory=list)
    weights: list[Tensors] = field(default_factory=list)
    copies: list[list[bytes]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    answers: list[list[list[int]]] = field(default_factory=list)


def train_every_case(rank: int, folder: Path) -> None:
    """Be one rank of every case that has it; leave what it saw in ``folder``."""
    import torch

    from disagg_train.modules import cpu

    torch.set_num_threads(1)
    cpu.install()
    seen = {}
    for name, case in CASES.items():
        grid = Grid(**{axis: case.degrees.get(axis, 1) for axis in ("tp", "cp", "dp", "pp")})
        if rank < grid.size:
            with world(rank, grid.size, folder / name.replace(" ", "_")):
                seen[name] = _Run(case, grid).see()
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(seen))


class _Run:
    """One rank's stages, driven without schedules: one microbatch at a time."""

    def __init__(self, case: Case, grid: Grid) -> None:
        import torch

        from disagg_train.engine.stage import build_stage
        from disagg_train.modules.process_groups import make_process_groups

        self._job, self._grid = load_job(_job(case, grid)), grid
        self._groups = make_process_groups(grid, 1, "gloo", DEADLINE_S)
        where = torch.device("cpu")
        self._stages = [
            build_stage("language", self._job, self._groups, where, vp_stage, case.split)
            for vp_stage in range(case.degrees.get("vpp", 1))
        ]

    def see(self) -> Seen:
        """Evaluate, run all steps and evaluate again."""
        seen = Seen()
        self._evaluate(seen)
        self._look(seen)
        for _ in range(NUM_STEPS):
            self._step(seen)
            self._look(seen)
        self._evaluate(seen)
        return seen

    def _look(self, seen: Seen) -> None:
        from disagg_train.engine.inspect import full_weights

        seen.weights.append(full_weights(self._named_stages))
        seen.copies.append([_bytes(weight) for weight in self._tied_weights()])

    @property
    def _named_stages(self) -> "dict[str, Stage]":
        return {stage.name: stage for stage in self._stages}

    def _tied_weights(self) -> "list[Tensor]":
        """Return this rank's copies, found by what they are used for."""
        models = [stage.unwrapped for stage in self._stages]
        embeddings = [model.gpt.embedding.word_embeddings for model in models if model.is_first]
        heads = [model.gpt.output_layer for model in models if model.is_last]
        return [part.weight for part in embeddings + heads if part.weight is not None]

    def _step(self, seen: Seen) -> None:
        from disagg_train.engine.inspect import full_gradients

        trained = [stage for stage in self._stages if stage.optimizer is not None]
        for stage in trained:
            stage.optimizer.zero_grad()
        seen.losses.append(self._accumulate())
        for stage in trained:
            stage.optimizer.sync(NUM_TARGETS)
        seen.gradients.append(full_gradients(self._named_stages))
        seen.norms.append(whole_norm(trained))
        for stage in trained:
            stage.optimizer.step(self._job.train.optimizer.lr, seen.norms[-1])

    def _accumulate(self) -> float:
        """Return the sum of losses that this rank counts."""
        loss_sum = 0.0
        for number, lengths in enumerate(MICROBATCHES):
            batch = self._batch(lengths)
            outputs = [self._forward(stage, number, batch) for stage in self._stages]
            for stage, output in reversed(list(zip(self._stages, outputs, strict=True))):
                self._backward(stage, number, output)
            loss_sum += float(outputs[-1]) if self._counts_loss else 0.0
        return loss_sum

    @property
    def _counts_loss(self) -> bool:
        return self._stages[-1].unwrapped.is_last and self._groups.tp.rank() == 0

    def _batch(self, lengths: Sequence[int], answer_tokens: int = 0) -> "LanguageBatch":
        groups = self._groups
        return lane_batch(lengths, self._grid, groups.dp.rank(), groups.cp.rank(), answer_tokens)

    def _forward(self, stage: "Stage", microbatch: int, batch: "LanguageBatch") -> "Tensor":
        import torch.distributed as dist

        from disagg_train.modules.batch import PREVIOUS_STAGE

        pp, model, inputs = self._groups.pp, stage.unwrapped, {}
        if not model.is_first:
            rows_TD = model.empty_rows(batch)
            dist.recv(rows_TD, group=pp, group_src=(pp.rank() - 1) % pp.size())
            inputs[PREVIOUS_STAGE] = rows_TD.requires_grad_()
        output = stage.forward(microbatch, batch, inputs)
        if not model.is_last:
            rows_TD = output.detach().contiguous()
            dist.send(rows_TD, group=pp, group_dst=(pp.rank() + 1) % pp.size())
        return output

    def _backward(self, stage: "Stage", microbatch: int, output: "Tensor") -> None:
        import torch
        import torch.distributed as dist

        from disagg_train.modules.batch import PREVIOUS_STAGE

        pp, model, grad_TD = self._groups.pp, stage.unwrapped, None
        if not model.is_last:
            grad_TD = torch.empty_like(output, memory_format=torch.contiguous_format)
            dist.recv(grad_TD, group=pp, group_src=(pp.rank() + 1) % pp.size())
        grads = stage.backward(microbatch, grad_TD)
        if not model.is_first:
            rows_TD = grads[PREVIOUS_STAGE].contiguous()
            dist.send(rows_TD, group=pp, group_dst=(pp.rank() - 1) % pp.size())

    def _evaluate(self, seen: Seen) -> None:
        from disagg_train.engine.decode import evaluate

        models = [stage.unwrapped for stage in self._stages]
        loss, answers = evaluate(models, self._batch(MICROBATCHES[0], answer_tokens=2), {})
        seen.scores.append(loss if self._counts_loss else 0.0)
        seen.answers.append(answers)


def _bytes(weight: "Tensor") -> bytes:
    content: bytes = weight.detach().numpy().tobytes()
    return content


def _job(case: Case, grid: Grid) -> dict[str, Any]:
    model = {"num_layers": 4, "hidden_size": 32, "num_attention_heads": 4}
    options = {"num_query_groups": QUERY_GROUPS, "vocab_size": VOCABULARY}
    optimizer = {"lr": 0.01, "clip_grad": 0.5, "weight_decay": 0.1}
    return {
        "name": "tied",
        "groups": {"language": {"ranks": grid.size}},
        "modules": {
            "language": {
                "kind": "gpt",
                "group": "language",
                "parallel": dict(case.degrees),
                "model": model | options | {"tie_embeddings": case.tied},
                "freeze": case.frozen,
            }
        },
        "train": {
            "steps": NUM_STEPS,
            "global_batch": 4,
            "microbatches": 2,
            "optimizer": optimizer,
        },
    }
