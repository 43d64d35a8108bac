"""An encoder of one's own with its projector, or a pipeline stage of it. See docs/encoders.md.

Shapes: P tokens of this cp rank as the class returns them, D its width, T = P / merge rows for
the LLM. Without sequence parallelism every tp rank holds them all.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from disagg_train.config.job import Precision
from disagg_train.config.models import EncoderConfig, GptConfig
from disagg_train.config.modules import CustomModule
from disagg_train.errors import ConfigError, DataError
from disagg_train.modules.batch import PREVIOUS_STAGE
from disagg_train.modules.projector import make_projector
from disagg_train.modules.specs import megatron_config
from disagg_train.modules.weights import initialize


@dataclass(frozen=True)
class CustomBatch:
    """Inputs of several samples, one after the other.

    Args:
        samples: the inputs as they were loaded; none on later pipeline stages.
        keys: the sample of each input.
        counts: tokens of each input, as its size promised.
        tokens_P: which of all these tokens this cp rank holds, in the order of its rows; -1 is
            padding.
        rows: how many of them are of each input.
    """

    samples: Sequence[Tensor]
    keys: tuple[int, ...]
    counts: tuple[int, ...]
    tokens_P: Tensor
    rows: tuple[int, ...]


class CustomEncoder(MegatronModule):
    """A class of one's own, its projector, and the checks between them.

    Args:
        name: of the module.
        module: its part of the job.
        found: the class, which fits the contract.
        language: sizes of the LLM.
        groups: the module's process groups.
        seed: of the job; with the module's name it decides what the constructor draws.
        precision: of weights and activations.

    Raises:
        ConfigError: the class has no width, or norms that mix samples.
    """

    def __init__(
        self,
        name: str,
        module: CustomModule,
        found: Any,
        language: GptConfig,
        groups: ProcessGroupCollection,
        seed: int,
        precision: Precision = "fp32",
    ) -> None:
        outline = _outline(module, language)
        config = megatron_config(outline, module.parallel, precision=precision)
        super().__init__(config=config)
        self.pg_collection, self._name = groups, name
        self._where = f"modules.{name}: {module.kind}"
        self._declared = tuple(getattr(found, "parallel", ()))
        self._frozen, self._recompute = module.freezes_all, module.recompute == "full"
        more = {"groups": groups} if self._declared else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_seed_of(seed, name))
            self.encoder: nn.Module = found(**module.options, **more)
        self.width, self.merge = _width(self.encoder, self._where), module.projector.merge
        if not self._frozen:
            _refuse_batch_norms(self.encoder, self._where)
        sizes = outline.model_copy(update={"hidden_size": self.width})
        is_last = groups.pp.rank() == groups.pp.size() - 1
        self.projector = (
            make_projector(module, sizes, language, groups, precision) if is_last else None
        )

    @property
    def draws_by_name(self) -> bool:
        """Whether (seed, name) decides the encoder's weights, and not its constructor.

        Of a matrix that is cut over tp or pp no rank's constructor could draw the same on every
        layout; a class that loads its weights from a file says ``own_weights = True``.
        """
        cut = bool({"tp", "pp"} & set(self._declared))
        return not getattr(self.encoder, "own_weights", not cut)

    def fill(self, seed: int) -> None:
        """Fill in the weights that (seed, name) decide: the projector's at the least."""
        tp = self.pg_collection.tp
        if self.draws_by_name:
            initialize(self._name, self, seed, tp)
            return
        self._share_weights()
        if self.projector is not None:
            initialize(f"{self._name}.projector", self.projector, seed, tp)

    @torch.no_grad()
    def _share_weights(self) -> None:
        """Give all replicas the first one's weights, whatever the constructor drew them from."""
        lanes = self.pg_collection.dp_cp
        for tensor in [*self.encoder.parameters(), *self.encoder.buffers()]:
            if tensor.is_floating_point() and lanes.size() > 1:
                dist.broadcast(tensor.data, group=lanes, group_src=0)

    def forward(self, batch: CustomBatch, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return this rank's rows.

        Args:
            batch: the inputs.
            inputs: on later stages, the rows of the stage before.

        Returns:
            The projector's ``[T, D of the LLM]``, or the ``[P, D]`` of a stage that others
            follow.

        Raises:
            DataError: the class returns another number of tokens than the size of an input
                promised, or of another width.
        """
        self.encoder.train(not self._frozen and torch.is_grad_enabled())
        samples = batch.samples
        if self.pg_collection.pp.rank() > 0:
            samples = inputs[PREVIOUS_STAGE].split(batch.rows)
        samples = [sample.to(self.config.params_dtype) for sample in samples]
        x_PD = self._run(samples, batch)
        self._check(x_PD, samples, batch)
        x_PD = x_PD.to(self.config.params_dtype)
        if self.projector is None:
            return x_PD
        x_TBD = x_PD.reshape(x_PD.shape[0] // self.merge, 1, -1)
        return self.projector(x_TBD).squeeze(1)

    def _run(self, samples: list[Tensor], batch: CustomBatch) -> Tensor:
        more = {"tokens": batch.tokens_P} if "cp" in self._declared else {}
        if self._recompute and torch.is_grad_enabled():
            return checkpoint(self.encoder, samples, use_reentrant=False, **more)
        return self.encoder(samples, **more)

    def _check(self, x_PD: object, samples: Sequence[Tensor], batch: CustomBatch) -> None:
        expected = (sum(batch.rows), self.width)
        if isinstance(x_PD, Tensor) and x_PD.shape == expected:
            return
        found = list(x_PD.shape) if isinstance(x_PD, Tensor) else type(x_PD).__name__
        raise DataError(
            f"{self._where} returned {found} where {list(expected)} was expected (tokens that "
            f"count() promised, width): {self._culprit(samples, batch)}; make forward and count "
            f"agree"
        )

    @torch.no_grad()
    def _culprit(self, samples: Sequence[Tensor], batch: CustomBatch) -> str:
        """Say which input has other tokens than promised, where inputs can be tried alone."""
        groups = self.pg_collection
        if groups.tp.size() == groups.cp.size() == groups.pp.size() == 1:
            for key, count, sample in zip(batch.keys, batch.counts, samples, strict=True):
                found = self._run([sample], batch)
                if isinstance(found, Tensor) and found.shape[:1] != (count,):
                    return (
                        f"of an input {list(sample.shape)} of sample {key} it makes "
                        f"{found.shape[0] if found.ndim else 0} tokens, count() says {count}"
                    )
        return f"the inputs of samples {sorted(set(batch.keys))[:8]}"


def _outline(module: CustomModule, language: GptConfig) -> EncoderConfig:
    """Return sizes for Megatron's config, of which gradients and optimizers read none."""
    if language.hidden_size % module.parallel.tp:
        raise ConfigError(
            f"tp={module.parallel.tp} of {module.kind} does not divide the LLM's hidden_size="
            f"{language.hidden_size}, which its projector is cut by; use another tp"
        )
    return EncoderConfig(
        num_layers=module.parallel.pp,
        hidden_size=language.hidden_size,
        num_attention_heads=module.parallel.tp,
    )


def _seed_of(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _width(encoder: nn.Module, where: str) -> int:
    width = getattr(encoder, "width", None)
    if not isinstance(width, int) or width < 1:
        raise ConfigError(
            f"{where}.width is {width!r}; set self.width in __init__, the number of values of a "
            f"token that forward returns"
        )
    return width


def _refuse_batch_norms(encoder: nn.Module, where: str) -> None:
    for path, part in encoder.named_modules():
        if isinstance(part, _BatchNorm):
            raise ConfigError(
                f"{where} has a {type(part).__name__} ({path}), which mixes samples, so that "
                f"results would depend on the layout; use a GroupNorm or LayerNorm, or freeze "
                f"the module"
            )
