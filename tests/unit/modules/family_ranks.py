"""Tiny random LLMs of transformers, loaded and run by real gloo ranks under several layouts.

Nothing heavy is imported before a rank runs, so that collecting the tests stays cheap.
"""

import pickle
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from disagg_train.config.load import load_job
from disagg_train.topology.grid import Grid
from tests.unit.modules.language_ranks import DEADLINE_S, VOCABULARY, sample, world

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from disagg_train.engine.stage import Stage
    from disagg_train.modules.batch import LanguageBatch
    from disagg_train.modules.hf.rules import Rule

Tensors = dict[str, NDArray[Any]]

LENGTHS = (7, 9)
NUM_RANKS = 2

_SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_LLAMA3: Mapping[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 3.0,
    "original_max_position_embeddings": 16,
}
_EXPERTS: Mapping[str, Any] = {
    "head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {"rope_parameters": _LLAMA3},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": _EXPERTS,
}
"""model_type -> what its checkpoint has beside the sizes of all."""

_DENSE: Mapping[str, Mapping[str, Any]] = {
    "one": {},
    "tp2": {"tp": 2},
    "tp2 sp": {"tp": 2, "sp": True},
    "pp2": {"pp": 2},
}
_SPARSE: Mapping[str, Mapping[str, Any]] = {
    "one": {},
    "tp2 sp": {"tp": 2, "sp": True},
    "pp2": {"pp": 2},
    "ep2": {"dp": 2, "ep": 2},
}
LAYOUTS = {name: _SPARSE if "experts" in str(extra) else _DENSE for name, extra in FAMILIES.items()}

_SHARDED = "qwen3"
"""The family whose checkpoint comes in several files."""


@dataclass(frozen=True)
class Seen:
    """What a rank saw of a layout.

    ``bytes_held`` are those of the full tensors alive whenever another was read, and
    ``logits_TV`` are on last stages only.
    """

    bytes_held: list[int]
    logits_TV: NDArray[Any] | None
    gradients: Tensors


@dataclass(frozen=True)
class Reference:
    """What transformers computes; gradients by our names."""

    logits_TV: NDArray[Any]
    gradients: Tensors


def run_families(rank: int, folder: Path) -> None:
    """Be one rank of every layout of every family; leave what it saw in ``folder``."""
    import torch

    from disagg_train.modules import cpu

    torch.set_num_threads(1)
    cpu.install()
    seen = {}
    for family in FAMILIES:
        with world(rank, NUM_RANKS, folder / f"{family}.made"):
            reference = _make_checkpoint(family, folder / family) if rank == 0 else None
            torch.distributed.barrier()
        for layout, degrees in LAYOUTS[family].items():
            grid = Grid(**{axis: degrees.get(axis, 1) for axis in ("tp", "cp", "dp", "pp")})
            if rank < grid.size:
                with world(rank, grid.size, folder / f"{family}.{layout.replace(' ', '.')}"):
                    seen[family, layout] = _run(folder / family, grid, degrees)
        if reference is not None:
            names = seen[family, "one"].gradients
            expected = _references_gradients(reference, family, folder / family, list(names))
            found = Reference(_plain_logits(reference).detach().numpy(), expected)
            (folder / f"{family}.expected").write_bytes(pickle.dumps(found))
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(seen))


def _make_checkpoint(family: str, folder: Path) -> "PreTrainedModel":
    """Save a model whose every weight, norms and biases too, is random."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **{**_SIZES, **FAMILIES[family]})
    config._attn_implementation = "eager"
    torch.manual_seed(len(family))
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            centre = 1.0 if "norm" in name else 0.0
            weight.copy_(centre + 0.3 * torch.randn_like(weight))
    model.save_pretrained(folder, max_shard_size="20KB" if family == _SHARDED else "50GB")
    return model


def _plain_logits(model: "PreTrainedModel") -> "Tensor":
    """Return transformers' logits of the samples, each run alone, one after the other."""
    import torch

    return torch.cat([model(torch.tensor([sample(n)])).logits[0] for n in LENGTHS])


def _references_gradients(
    model: "PreTrainedModel", family: str, folder: Path, names: Sequence[str]
) -> Tensors:
    """Return the gradients of the mean token loss, joined as our parameters are."""
    import torch

    from disagg_train.modules.hf.language import language_naming

    labels_T = _batch(1).labels_BS[0]
    losses = torch.nn.functional.cross_entropy(
        _plain_logits(model), labels_T, ignore_index=-1, reduction="sum"
    )
    (losses / _NUM_TARGETS).backward()
    naming = language_naming(load_job(_job(folder, Grid(), {})).language.model, family)
    plain = _by_checkpoints_names(model)
    found = {}
    for name in names:
        rule = naming(name)
        assert rule is not None, name
        found[name] = rule.join([plain[each] for each in rule.names]).numpy()
    return found


def _by_checkpoints_names(model: "PreTrainedModel") -> dict[str, "Tensor"]:
    """Return gradients as a checkpoint names weights: transformers keeps experts joined."""
    found = {}
    sparse = "block_sparse_moe" if model.config.model_type == "mixtral" else "mlp"
    gate, down, up = (
        ("w1", "w2", "w3") if sparse != "mlp" else ("gate_proj", "down_proj", "up_proj")
    )
    for path, weight in model.named_parameters():
        name, grad = path.removeprefix("model."), weight.grad
        if name.endswith("mlp.gate.weight"):
            found[name.replace("mlp.gate", f"{sparse}.gate")] = grad
        elif "mlp.experts" in name:
            prefix = name.partition("mlp.experts")[0] + f"{sparse}.experts"
            for number, of_expert in enumerate(grad):
                if name.endswith("down_proj"):
                    found[f"{prefix}.{number}.{down}.weight"] = of_expert
                else:
                    halves = of_expert.chunk(2)
                    found[f"{prefix}.{number}.{gate}.weight"] = halves[0]
                    found[f"{prefix}.{number}.{up}.weight"] = halves[1]
        else:
            found[name] = grad
    return found


_NUM_TARGETS = sum(length - 1 for length in LENGTHS)


def _run(folder: Path, grid: Grid, degrees: Mapping[str, Any]) -> Seen:
    import torch

    from disagg_train.engine.inspect import full_gradients
    from disagg_train.engine.stage import build_stage
    from disagg_train.modules.process_groups import make_process_groups

    job = load_job(_job(folder, grid, degrees))
    groups = make_process_groups(grid, degrees.get("ep", 1), "gloo", DEADLINE_S)
    with _bytes_held() as bytes_held:
        stage = build_stage("language", job, groups, torch.device("cpu"))
    batch = _batch(grid.tp if degrees.get("sp") else 1)
    inputs = _received(stage, batch)
    logits = stage.unwrapped.logits(batch, inputs)
    _hand_on(stage, logits)
    stage.optimizer.zero_grad()
    _accumulate(stage, batch)
    stage.optimizer.sync(_NUM_TARGETS * grid.dp)  # every lane has the same samples
    gradients = full_gradients({"language": stage})
    return Seen(bytes_held, logits.numpy() if stage.unwrapped.is_last else None, gradients)


@contextmanager
def _bytes_held() -> Iterator[list[int]]:
    """Return a context that lists, at each full tensor's reading, the bytes of those alive."""
    from disagg_train.modules.hf.checkpoint import Checkpoint

    alive: dict[int, int] = {}
    held: list[int] = []
    read = Checkpoint.read

    def watched(checkpoint: Checkpoint, rule: "Rule", shape: Sequence[int]) -> "Tensor":
        held.append(sum(alive.values()))
        full = read(checkpoint, rule, shape)
        alive[len(held)] = full.nbytes
        weakref.finalize(full, alive.pop, len(held))
        return full

    with patch.object(Checkpoint, "read", watched):
        yield held


def _accumulate(stage: "Stage", batch: "LanguageBatch") -> None:
    import torch
    import torch.distributed as dist

    pp, model = stage.groups.pp, stage.unwrapped
    inputs = {name: rows.requires_grad_() for name, rows in _received(stage, batch).items()}
    output, grad_TD = stage.forward(0, batch, inputs), None
    _hand_on(stage, output)
    if not model.is_last:
        grad_TD = torch.empty_like(output, memory_format=torch.contiguous_format)
        dist.recv(grad_TD, group=pp, group_src=pp.rank() + 1)
    grads = stage.backward(0, grad_TD)
    for rows_TD in grads.values():
        dist.send(rows_TD.contiguous(), group=pp, group_dst=pp.rank() - 1)


def _received(stage: "Stage", batch: "LanguageBatch") -> dict[str, "Tensor"]:
    import torch.distributed as dist

    from disagg_train.modules.batch import PREVIOUS_STAGE

    pp, model = stage.groups.pp, stage.unwrapped
    if model.is_first:
        return {}
    rows_TD = model.empty_rows(batch)
    dist.recv(rows_TD, group=pp, group_src=pp.rank() - 1)
    return {PREVIOUS_STAGE: rows_TD.detach()}


def _hand_on(stage: "Stage", rows_TD: "Tensor") -> None:
    import torch.distributed as dist

    if not stage.unwrapped.is_last:
        pp = stage.groups.pp
        dist.send(rows_TD.detach().contiguous(), group=pp, group_dst=pp.rank() + 1)


def _batch(tp: int) -> "LanguageBatch":
    """Return the samples packed into one stream, cut over tp under sequence parallelism."""
    import torch

    from disagg_train.data.collate import context_positions
    from disagg_train.engine.batches import make_packing
    from disagg_train.modules.batch import LanguageBatch
    from disagg_train.topology.stream import Cut

    stream = Cut(tp=tp).stream(LENGTHS)
    positions_RT = context_positions(stream)
    packing = make_packing(stream, positions_RT, 1, torch.device("cpu"))
    tokens = [token for length in LENGTHS for token in sample(length)]
    labels = [token for length in LENGTHS for token in [*sample(length)[1:], -1]]
    return LanguageBatch(
        torch.tensor([tokens]),
        torch.tensor([labels]),
        packing,
        {},
        torch.from_numpy(np.asarray(positions_RT)),
    )


def _job(folder: Path, grid: Grid, degrees: Mapping[str, Any]) -> dict[str, Any]:
    language = {
        "kind": "gpt",
        "group": "language",
        "parallel": dict(degrees),
        "pretrained": str(folder),
    }
    return {
        "name": "families",
        "groups": {"language": {"ranks": grid.size}},
        "modules": {"language": language},
        "train": {"steps": 1, "global_batch": 4, "optimizer": {"lr": 0.01}},
    }
