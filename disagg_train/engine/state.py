"""What a rank's stages hold, as chunks of full tensors that fit any layout.

Trained weights go by their full names and are the optimizer's fp32 copies of them; Adam's
averages are ``<full name>@exp_avg`` and ``@exp_avg_sq``. ``<module>@num_updates`` counts Adam's
updates, ``<module>@loss_scale`` is the fp16 scale with its good steps, and ``<group>@rng.<rank>``
the state of a rank's random numbers, kept with the group's first module.

Every element is written by one rank: a shard of the distributed optimizer by the rank that
changes it, all else by the first of its holders.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from disagg_train.checkpoint.regions import Box, Cut, full_shape, placed, range_boxes, whole
from disagg_train.checkpoint.sharded import Chunk, ModuleState, Snapshot
from disagg_train.engine.loss_scale import LossScale
from disagg_train.engine.setup import StateSource
from disagg_train.engine.stage import Stage
from disagg_train.modules.weights import (
    is_expert_parallel,
    is_sharded,
    is_tied_copy,
    named_weights,
)


class RankState:
    """The state of one rank.

    Args:
        stages: its stages by name.
        group: name of its actor group.
        rank: its number in the group.
        loss_scale: of the job, where it has one.
    """

    def __init__(
        self, stages: Mapping[str, Stage], group: str, rank: int, loss_scale: LossScale | None
    ) -> None:
        self._group, self._rank, self._loss_scale = group, rank, loss_scale
        self._stages: dict[str, list[Stage]] = defaultdict(list)
        for stage in stages.values():
            self._stages[stage.module].append(stage)
        self._copies: _Copies | None = None

    @torch.no_grad()
    def snapshot(self, steps_done: int, everything: bool) -> Snapshot:
        """Copy what training changes into memory of the host, which the next call uses again.

        Args:
            steps_done: training steps that the state has behind it.
            everything: whether frozen weights belong to it; nobody changes them, so they are
                not copied.
        """
        if self._copies is None or self._copies.have_averages != self._have_averages:
            shards = {m: list(self._shards(m)) for m in self._stages}
            self._copies = _Copies(shards, self._have_averages)
        self._copies.update()
        chunks = self._copies.chunks
        counts = {m: [*chunks[m], *self._counts(m), *self._rng(m)] for m in self._stages}
        frozen = {m: list(self._frozen(m)) for m in self._stages} if everything else {}
        return Snapshot(steps_done, counts, frozen)

    @torch.no_grad()
    def restore(self, source: StateSource) -> None:
        """Take over the state of a source, whatever layout it was saved in.

        Weights that nothing trains keep their values where the source has none.

        Raises:
            CheckpointError: the source lacks something or cannot be read.
        """
        self._copies = None
        for module in self._stages:
            where = f"the state of module {module!r} after {source.steps_done} steps"
            saved = ModuleState(source.reader(module), where)
            self._resume_counts(module, saved)
            saved.fill(list(self._wanted(module, saved)))
            if module == self._first_module:
                self._resume_rng(saved, source.steps_done)

    @property
    def _first_module(self) -> str:
        return next(iter(self._stages))

    @property
    def _have_averages(self) -> list[bool]:
        stages = [stage for stages in self._stages.values() for stage in stages]
        return [bool(s.optimizer and s.optimizer.num_updates) for s in stages]

    # What is written.

    def _shards(self, module: str) -> Iterator["_Flat"]:
        """Yield what this rank's optimizers change and no other rank writes."""
        for weight in self._weights(module):
            if not is_tied_copy(weight.parameter) and weight.is_first_in_tp:
                yield from weight.flats()

    def _frozen(self, module: str) -> Iterator[Chunk]:
        for weight in self._weights(module):
            if not weight.trains and weight.is_first_holder:
                yield from weight.chunks()

    def _counts(self, module: str) -> Iterator[Chunk]:
        """Yield the numbers that every rank of a module has alike; the first writes them."""
        stage = self._stages[module][0]
        if any(g.rank() for g in (stage.groups.tp, stage.groups.dp_cp, stage.groups.pp)):
            return
        if stage.optimizer is not None:
            yield _alone(_num_updates(module), torch.tensor(stage.optimizer.num_updates))
        if self._loss_scale is not None:
            scale = torch.tensor(self._loss_scale.state, dtype=torch.float64)
            yield _alone(_loss_scale(module), scale)

    def _rng(self, module: str) -> Iterator[Chunk]:
        if module == self._first_module:
            yield _alone(self._rng_name(self._rank), torch.get_rng_state())
            if torch.cuda.is_available():
                yield _alone(self._device_rng_name, torch.cuda.get_rng_state())

    # What is read.

    def _resume_counts(self, module: str, saved: ModuleState) -> None:
        for stage in self._stages[module]:
            if stage.optimizer is not None:
                stage.optimizer.resume(int(saved.read(_num_updates(module))))
        if self._loss_scale is not None and _loss_scale(module) in saved:
            value, good_steps = saved.read(_loss_scale(module)).tolist()
            self._loss_scale.resume(value, int(good_steps))

    def _wanted(self, module: str, saved: ModuleState) -> Iterator[Chunk]:
        """Yield the chunks that this rank holds, to be filled in.

        Of a weight in 16 bits that means the weight, rounded, and the optimizer's fp32 copy.
        """
        for weight in self._weights(module):
            if weight.trains or weight.name in saved:
                yield from weight.chunks()
            for flat in weight.flats():
                if flat.name != weight.name or weight.parameter.dtype != flat.tensor.dtype:
                    yield from flat.chunks(flat.tensor)

    def _resume_rng(self, saved: ModuleState, steps_done: int) -> None:
        """Go on with the random numbers, or new ones where there are other ranks than before."""
        num_ranks = sum(name.startswith(self._rng_name("")) for name in saved.names)
        same = num_ranks == self._num_ranks
        if not same:
            seed_random_numbers(torch.initial_seed(), steps_done)
            return
        torch.set_rng_state(saved.read(self._rng_name(self._rank)))
        if torch.cuda.is_available() and self._device_rng_name in saved:
            torch.cuda.set_rng_state(saved.read(self._device_rng_name))

    @property
    def _num_ranks(self) -> int:
        """Ranks of the group, all of which a module's stages are spread over."""
        groups = self._stages[self._first_module][0].groups
        return int(groups.tp.size() * groups.dp_cp.size() * groups.pp.size())

    def _rng_name(self, rank: int | str) -> str:
        return f"{self._group}@rng.{rank}"

    @property
    def _device_rng_name(self) -> str:
        return f"{self._group}@device_rng.{self._rank}"

    def _weights(self, module: str) -> Iterator["_Weight"]:
        for stage in self._stages[module]:
            for name, parameter in named_weights(module, stage.unwrapped):
                yield _Weight(stage, name, parameter)


def seed_random_numbers(*parts: object) -> None:
    """Seed torch's random numbers, on all devices, from whatever tells one rank from others."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class _Weight(NamedTuple):
    """A parameter of a stage, with its full name."""

    stage: Stage
    name: str
    parameter: nn.Parameter

    @property
    def trains(self) -> bool:
        return self.stage.optimizer is not None and self.parameter.requires_grad

    @property
    def cut(self) -> Cut | None:
        """How tp ranks share the weight; None if each has all of it."""
        tp, parameter = self.stage.groups.tp, self.parameter
        if tp.size() == 1 or not is_sharded(parameter):
            return None
        return Cut(parameter.partition_dim, parameter.partition_stride, tp.rank(), tp.size())

    @property
    def is_first_in_tp(self) -> bool:
        return self.cut is not None or self.stage.groups.tp.rank() == 0

    @property
    def is_first_holder(self) -> bool:
        groups = self.stage.groups
        replicas = groups.expt_dp if is_expert_parallel(self.parameter) else groups.dp_cp
        is_original = not is_tied_copy(self.parameter)
        return is_original and self.is_first_in_tp and replicas.rank() == 0

    def chunks(self) -> Iterator[Chunk]:
        """Yield the weight as this rank's model has it."""
        local = self.parameter.detach()
        yield from _placed_chunks(self, self.name, whole(local.shape), local)

    def flats(self) -> Iterator["_Flat"]:
        """Yield what this rank's optimizer keeps of the weight."""
        if not self.trains or self.stage.optimizer is None:
            return
        shard = self.stage.optimizer.shard(self.parameter)
        if shard is not None:
            yield _Flat(self, self.name, shard.start, shard.master)
            for kind, average in shard.averages.items():
                yield _Flat(self, f"{self.name}@{kind}", shard.start, average)


class _Flat(NamedTuple):
    """A range of a weight's elements, or of something that it has one of per element."""

    weight: _Weight
    name: str
    start: int
    tensor: Tensor

    def chunks(self, tensor: Tensor) -> Iterator[Chunk]:
        """Yield the range as boxes, views of ``tensor``, which has its elements."""
        end, position = self.start + tensor.numel(), 0
        for box in range_boxes(self.weight.parameter.shape, self.start, end):
            piece = tensor[position : position + box.count].view(box.sizes)
            yield from _placed_chunks(self.weight, self.name, box, piece)
            position += box.count


class _Copies:
    """Copies of what optimizers change, in memory of the host.

    Args:
        flats: by module, what is copied.
        have_averages: of the stages, whether Adam's averages are among it.
    """

    def __init__(self, flats: Mapping[str, list[_Flat]], have_averages: list[bool]) -> None:
        self.have_averages = have_averages
        self.chunks: dict[str, list[Chunk]] = {module: [] for module in flats}
        self._pairs: list[tuple[Tensor, Tensor]] = []
        for module, mine in flats.items():
            for flat in mine:
                copy = torch.empty(
                    flat.tensor.shape, dtype=flat.tensor.dtype, pin_memory=flat.tensor.is_cuda
                )
                self._pairs.append((copy, flat.tensor))
                self.chunks[module] += flat.chunks(copy)

    def update(self) -> None:
        """Copy everything, and wait until it is copied."""
        for copy, tensor in self._pairs:
            copy.copy_(tensor, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()


def _placed_chunks(weight: _Weight, name: str, box: Box, tensor: Tensor) -> Iterator[Chunk]:
    """Yield a box of a rank's own tensor as boxes of the full one."""
    shape, cut = tuple(weight.parameter.shape), weight.cut
    for inside, there in placed(box, shape, cut):
        part = tensor
        for dim, (offset, size) in enumerate(zip(inside.offsets, inside.sizes, strict=True)):
            part = part.narrow(dim, offset, size)
        yield Chunk(name, full_shape(shape, cut), there.offsets, part)


def _alone(name: str, tensor: Tensor) -> Chunk:
    """Return a tensor that a rank has all of."""
    return Chunk(name, tuple(tensor.shape), (0,) * tensor.dim(), tensor)


def _num_updates(module: str) -> str:
    return f"{module}@num_updates"


def _loss_scale(module: str) -> str:
    return f"{module}@loss_scale"
