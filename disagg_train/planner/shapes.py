"""How one replica of a module can be cut over ranks. Pure.

Degrees keep to what the model divides by, tensor parallelism to one node, and context parallelism
to the LLM: encoders' inputs are short.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from math import gcd
from typing import Any

from disagg_train.config.base import divisors
from disagg_train.config.modules import (
    CustomModule,
    EncoderModule,
    GptModule,
    ParallelConfig,
    Recompute,
)

_MOST_STAGES = 32
_MOST_CONTEXT = 64
_MOST_STAGES_PER_RANK = 4


@dataclass(frozen=True, order=True)
class Shape:
    """One replica of a module.

    Args:
        tp: tensor-parallel degree; with more than one, sequence-parallel too.
        cp: context-parallel degree.
        pp: pipeline-parallel degree.
        vpp: stages per pipeline rank.
        ep: expert-parallel degree, over ranks of all replicas.
        recompute: what its backward computes again.
    """

    tp: int = 1
    cp: int = 1
    pp: int = 1
    vpp: int = 1
    ep: int = 1
    recompute: Recompute = "none"

    @property
    def num_ranks(self) -> int:
        """Ranks of one replica."""
        return self.tp * self.cp * self.pp

    @property
    def num_stages(self) -> int:
        """Stages of the pipeline."""
        return self.pp * self.vpp

    def parallel(self, dp: int, module: EncoderModule | GptModule) -> ParallelConfig:
        """Return the degrees of so many replicas of a module."""
        sp = self.tp > 1 and not isinstance(module, CustomModule)
        degrees = {"tp": self.tp, "cp": self.cp, "pp": self.pp, "vpp": self.vpp, "ep": self.ep}
        return ParallelConfig(sp=sp, dp=dp, **degrees)

    def of(self, module: EncoderModule | GptModule, dp: int) -> EncoderModule | GptModule:
        """Return a module that is cut so; unchecked."""
        changes: dict[str, Any] = {"parallel": self.parallel(dp, module)}
        return module.model_copy(update=changes | {"recompute": self.recompute})


def shape_of(module: EncoderModule | GptModule) -> Shape:
    """Return the shape that a module has."""
    own = module.parallel
    return Shape(own.tp, own.cp, own.pp, own.vpp, own.ep, module.recompute)


def shapes(
    module: EncoderModule | GptModule, most_ranks: int, ranks_per_node: int
) -> tuple[Shape, ...]:
    """Return every shape of a module that so many ranks have room for.

    An encoder of a class of one's own keeps its shape: nothing is known of what it divides by.

    Args:
        module: the module.
        most_ranks: of one replica.
        ranks_per_node: that tensor parallelism stays within.
    """
    if isinstance(module, CustomModule):
        return (shape_of(module),)
    found = (
        Shape(tp, cp, pp, vpp, ep, recompute)
        for tp in _tensor_degrees(module, ranks_per_node)
        for cp in _context_degrees(module)
        for pp, vpp in _stage_degrees(module)
        for ep in _expert_degrees(module)
        for recompute in _recomputed()
    )
    return tuple(shape for shape in found if shape.num_ranks <= most_ranks)


def _tensor_degrees(module: EncoderModule | GptModule, most: int) -> list[int]:
    model: Any = module.model  # type: ignore[union-attr]
    sizes = [model.num_attention_heads, model.ffn_size]
    if isinstance(module, GptModule):
        sizes += [module.model.query_groups, module.model.vocab_size]
        if module.model.num_experts is not None:
            sizes.append(module.model.expert_ffn_size)
    return [tp for tp in divisors(reduce(gcd, sizes)) if tp <= most]


def _context_degrees(module: EncoderModule | GptModule) -> list[int]:
    if not isinstance(module, GptModule):
        return [1]
    return [2**n for n in range(_MOST_CONTEXT.bit_length()) if 2**n <= _MOST_CONTEXT]


def _stage_degrees(module: EncoderModule | GptModule) -> Iterator[tuple[int, int]]:
    layers = module.model.num_layers_run  # type: ignore[union-attr]
    for pp in divisors(layers):
        if pp > _MOST_STAGES:
            continue
        yield pp, 1
        if pp > 1 and isinstance(module, GptModule):
            per_rank = divisors(layers // pp)
            yield from ((pp, vpp) for vpp in per_rank if 1 < vpp <= _MOST_STAGES_PER_RANK)


def _expert_degrees(module: EncoderModule | GptModule) -> list[int]:
    if isinstance(module, GptModule) and module.model.num_experts is not None:
        return divisors(module.model.num_experts)
    return [1]


def _recomputed() -> tuple[Recompute, ...]:
    """Return what is worth a try: computing the core of attention again saves no memory here."""
    return "none", "full"
