"""Small stages on real gloo ranks, run forward and backward in several ways.

Nothing heavy is imported before a rank runs, so that collecting the tests stays cheap.
"""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from disagg_train.config.load import load_job
from disagg_train.topology.grid import Grid

if TYPE_CHECKING:
    from torch import Tensor

    from disagg_train.engine.stage import Stage
    from disagg_train.modules.batch import EncoderBatch, LanguageBatch

NUM_RANKS = 2
_DEADLINE_S = 60.0
_EXPERTS = {"num_experts": 4, "experts_per_token": 2}
"""With 32 of them and 12 tokens, some get none."""


@dataclass(frozen=True)
class Layout:
    """A module and how it is cut."""

    module: str
    degrees: Mapping[str, Any]
    model: Mapping[str, Any]
    options: Mapping[str, Any]


LAYOUTS: Mapping[str, Layout] = {
    "gpt": Layout("language", {}, {}, {}),
    "gpt tp2": Layout("language", {"tp": 2}, {}, {}),
    "gpt tp2 sp": Layout("language", {"tp": 2, "sp": True}, {}, {}),
    "gpt cp2": Layout("language", {"cp": 2}, {}, {}),
    "gpt pp2": Layout("language", {"pp": 2}, {}, {}),
    "gpt experts": Layout("language", {}, _EXPERTS | {"num_experts": 32}, {}),
    "gpt tp2 experts": Layout("language", {"tp": 2, "sp": True}, _EXPERTS, {}),
    "gpt ep2": Layout("language", {"dp": 2, "ep": 2}, _EXPERTS, {}),
    "gpt tied": Layout("language", {"tp": 2}, {"tie_embeddings": True}, {}),
    "gpt frozen": Layout("language", {"pp": 2}, {}, {"freeze": True}),
    "vit": Layout("vision", {}, {}, {}),
    "vit tp2 sp": Layout("vision", {"tp": 2, "sp": True}, {}, {}),
    "vit pp2": Layout("vision", {"pp": 2}, {}, {}),
    "vit projector only": Layout(
        "vision", {"tp": 2}, {}, {"freeze": True, "projector": {"merge": 2, "freeze": False}}
    ),
}

WAYS: Mapping[str, tuple[str, str]] = {
    "plain": ("none", "F0 F1 F2 F3 B0 B1 B2 B3"),
    "one at a time": ("none", "F0 B0 F1 B1 F2 B2 F3 B3"),
    "two at a time": ("none", "F0 F1 B0 F2 B1 F3 B2 B3"),
    "split": ("none", "F0 F1 F2 F3 I0 I1 I2 W0 I3 W1 W2 W3"),
    "split at once": ("none", "F0 F1 I0 W0 F2 I1 W1 B2 F3 B3"),
    "selective": ("selective", "F0 F1 F2 F3 B0 B1 B2 B3"),
    "full": ("full", "F0 F1 F2 F3 B0 B1 B2 B3"),
    "split full": ("full", "F0 F1 F2 F3 I0 I1 I2 W0 I3 W1 W2 W3"),
}
"""By name: what is computed again, and the order of forward, backward, and its two parts."""


@dataclass(frozen=True)
class Seen:
    """What one rank saw.

    Args:
        outputs: of every microbatch.
        input_grads: of the rows from the stage before.
        gradients: of this rank's weights by their local path, summed over microbatches.
        kept_outputs: outputs whose memory lived on after they were sent.
        live_bytes: activations after every operation.
        peak_bytes: the most at once.
    """

    outputs: list[NDArray[Any]]
    input_grads: list[NDArray[Any]]
    gradients: dict[str, NDArray[Any]]
    kept_outputs: int
    live_bytes: list[int]
    peak_bytes: int


def run_every_layout(rank: int, folder: Path) -> None:
    """Be one rank of every layout that has it; leave what it saw in ``folder``."""
    import torch

    from disagg_train.modules import cpu

    torch.set_num_threads(1)
    cpu.install()
    seen = {}
    for name, layout in LAYOUTS.items():
        grid = Grid(**{axis: layout.degrees.get(axis, 1) for axis in ("tp", "cp", "pp", "dp")})
        if rank < grid.size:
            with _world(rank, grid.size, folder / name.replace(" ", "_")):
                for way in WAYS:
                    seen[name, way] = _Run(layout, grid, way).run()
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(seen))


@contextmanager
def _world(rank: int, size: int, file: Path) -> Iterator[None]:
    import torch.distributed as dist

    timeout = timedelta(seconds=_DEADLINE_S)
    dist.init_process_group("gloo", f"file://{file}", timeout, size, rank)
    yield
    dist.destroy_process_group()


class _Run:
    """One way of running one layout on this rank."""

    def __init__(self, layout: Layout, grid: Grid, way: str) -> None:
        import torch

        from disagg_train.engine.activations import ActivationMeter
        from disagg_train.engine.stage import build_stage
        from disagg_train.modules.process_groups import make_process_groups

        recompute, self.ops = WAYS[way][0], WAYS[way][1].split()
        job = load_job(_job(layout, grid, recompute))
        self.groups = make_process_groups(grid, layout.degrees.get("ep", 1), "gloo", _DEADLINE_S)
        self.layout, self.meter = layout, ActivationMeter()
        self.stage: Stage = build_stage(
            layout.module,
            job,
            self.groups,
            torch.device("cpu"),
            split=_stages(layout.module, grid.pp) if way.startswith("split") else (),
            meter=self.meter,
        )
        self.outputs: dict[int, NDArray[Any]] = {}
        self.input_grads: dict[int, NDArray[Any]] = {}
        self.freed: list[Any] = []

    def run(self) -> Seen:
        if self.stage.optimizer is not None:
            self.stage.optimizer.zero_grad()
        do = {
            "F": self._forward,
            "B": lambda number: self._backward(number, self.stage.backward),
            "I": lambda number: self._backward(number, self.stage.backward_input),
            "W": self.stage.backward_weight,
        }
        live_bytes, kept_outputs = [], 0
        for op in self.ops:
            do[op[0]](int(op[1:]))
            live_bytes.append(self.meter.live_bytes)
            kept_outputs += sum(not freed.expired() for freed in self.freed)
        return Seen(
            outputs=[self.outputs[number] for number in sorted(self.outputs)],
            input_grads=[self.input_grads[number] for number in sorted(self.input_grads)],
            gradients={
                name: parameter.main_grad.clone().numpy()
                for name, parameter in self.stage.unwrapped.named_parameters()
                if parameter.requires_grad
            },
            kept_outputs=kept_outputs,
            live_bytes=live_bytes,
            peak_bytes=self.meter.take_peak_bytes(),
        )

    def _forward(self, number: int) -> None:
        from torch.multiprocessing.reductions import StorageWeakRef

        output = self.stage.forward(number, self._batch(number), self._received(number))
        self.outputs[number] = output.detach().clone().numpy()
        self._send(output.detach(), self.groups.pp.rank() + 1)
        if output.dim() > 0:
            self.freed.append(StorageWeakRef(output.untyped_storage()))

    def _backward(self, number: int, backward: Any) -> None:
        import torch

        rows = torch.from_numpy(self.outputs[number])
        grad_TD = None
        if self.groups.pp.rank() < self.groups.pp.size() - 1:
            grad_TD = self._receive(torch.empty_like(rows), self.groups.pp.rank() + 1)
        elif rows.dim() > 0:
            grad_TD = torch.cos(torch.arange(rows.numel()) + number).view_as(rows)
        for grad in backward(number, grad_TD).values():
            self.input_grads[number] = grad.clone().numpy()
            self._send(grad, self.groups.pp.rank() - 1)
        if grad_TD is not None:
            grad_TD.fill_(float("nan"))  # as when its memory receives the next gradient

    def _received(self, number: int) -> "dict[str, Tensor]":
        import torch

        from disagg_train.modules.batch import PREVIOUS_STAGE

        before = self.groups.pp.rank() - 1
        if before < 0:
            return {}
        tokens = 12 if self.layout.module == "language" else 24
        rows_TD = self._receive(torch.empty(tokens, 32), before)
        return {PREVIOUS_STAGE: rows_TD.requires_grad_()}

    def _send(self, rows: "Tensor", stage: int) -> None:
        import torch.distributed as dist

        if 0 <= stage < self.groups.pp.size():
            dist.send(rows.contiguous(), stage)

    def _receive(self, rows: "Tensor", stage: int) -> "Tensor":
        import torch.distributed as dist

        dist.recv(rows, stage)
        return rows

    def _batch(self, number: int) -> "EncoderBatch | LanguageBatch":
        if self.layout.module == "vision":
            return _images(number)
        return _text(number + 4 * self.groups.dp.rank(), self.groups.cp)


def _job(layout: Layout, grid: Grid, recompute: str) -> dict[str, Any]:
    sizes = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
    modules: dict[str, dict[str, Any]] = {
        "language": {"kind": "gpt", "model": sizes | {"vocab_size": 64}},
        "vision": {"kind": "vit", "model": sizes | {"patch_size": 4}},
    }
    modules["vision"]["projector"] = {"merge": 2}
    for name, module in modules.items():
        module["group"] = name
    changed = modules[layout.module]
    changed |= {"parallel": dict(layout.degrees), "recompute": recompute, **layout.options}
    changed["model"] |= layout.model
    if layout.module == "language":
        del modules["vision"]
    return {
        "name": "backward",
        "groups": {name: {"ranks": _ranks(modules[name])} for name in modules},
        "modules": modules,
        "train": {"steps": 1, "global_batch": 8, "microbatches": 4, "optimizer": {"lr": 0.01}},
    }


def _stages(module: str, pp: int) -> tuple[str, ...]:
    from disagg_train.schedule.graph import stage_name

    return tuple(stage_name(module, number, pp) for number in range(pp))


def _ranks(module: Mapping[str, Any]) -> int:
    degrees = module.get("parallel", {})
    return int(np.prod([degrees.get(axis, 1) for axis in ("tp", "cp", "pp", "dp")]))


def _text(number: int, cp: Any) -> "LanguageBatch":
    """Return one padded sample of 12 positions, cut over cp."""
    import torch

    from disagg_train.modules.attention import zigzag
    from disagg_train.modules.batch import LanguageBatch

    tokens = ((torch.arange(12) ** 2 * 5 + number) % 64)[None]
    labels = torch.full((1, 12), -1)
    labels[:, :-1] = tokens[:, 1:]
    held = zigzag(12, cp.size(), torch.device("cpu"))[cp.rank()]
    return LanguageBatch(
        tokens[:, held].contiguous(),
        labels[:, held].contiguous(),
        None,
        {},
        torch.arange(12)[None],
    )


def _images(number: int) -> "EncoderBatch":
    """Return two packed images of 16 and 8 patches."""
    import torch

    from disagg_train.modules.batch import EncoderBatch, Packing, cumulative

    lengths: Sequence[int] = (16, 8)
    bounds = cumulative(tuple(lengths), torch.device("cpu"))
    packing = Packing(
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        max_seqlen_q=16,
        max_seqlen_kv=16,
        lengths=tuple(lengths),
        padded=tuple(lengths),
        positions_RT=torch.arange(24)[None],
        order_K=torch.arange(24),
    )
    pixels_PX = torch.sin(torch.arange(24.0 * 16) + number).view(24, 16)
    places = torch.cat([torch.arange(length) for length in lengths])
    return EncoderBatch(packing, pixels_PX, places // 4, places % 4)
