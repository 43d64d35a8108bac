"""One pipeline stage of a module on one rank.

Forward keeps, per microbatch, what its backward will need: the end of autograd's graph and the
received rows, not the rows that it returns. These are free once they are sent.

Rows are ``[T, D]``: what an encoder gives the LLM, and the gradients that come back.
"""

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from disagg_train.config.job import JobConfig
from disagg_train.config.modules import CustomModule, GptModule, TransformerModule
from disagg_train.data.own_encoders import import_encoder
from disagg_train.engine.activations import ActivationMeter
from disagg_train.engine.freezing import freeze, train_recomputed_layers
from disagg_train.engine.optimizer import ModuleOptimizer, wrap
from disagg_train.engine.start import start_from
from disagg_train.modules.batch import EncoderBatch, LanguageBatch
from disagg_train.modules.cpu import cuda_means_cpu
from disagg_train.modules.custom import CustomBatch, CustomEncoder
from disagg_train.modules.encoder import Encoder
from disagg_train.modules.gpt import LanguageModel
from disagg_train.modules.initial_weights import fill_first_weights
from disagg_train.modules.lora_linears import add_lora
from disagg_train.modules.specs import DTYPES
from disagg_train.modules.weight_gradients import WeightGradients
from disagg_train.schedule.graph import stage_name


@dataclass
class _Activation:
    end: GradientEdge | None
    inputs: dict[str, Tensor] = field(default_factory=dict)


class Stage:
    """Runs the forwards and backwards of a pipeline stage.

    Args:
        name: of the stage.
        module: that it is a stage of.
        model: Megatron model that takes ``(batch, inputs)``.
        groups: its process groups.
        optimizer: changes its weights; None where the module is frozen.
        width: D of the rows that it returns.
        device: where it computes.
        weight_gradients: puts them off, where backward comes in two parts.
        meter: counts the activations.
    """

    def __init__(
        self,
        name: str,
        module: str,
        model: nn.Module,
        groups: ProcessGroupCollection,
        optimizer: ModuleOptimizer | None,
        width: int,
        device: torch.device,
        weight_gradients: WeightGradients | None = None,
        meter: ActivationMeter | None = None,
    ) -> None:
        self.name, self.module, self.model = name, module, model
        self.groups, self.optimizer = groups, optimizer
        self._width, self._device = width, device
        self._weight_gradients, self._meter = weight_gradients, meter
        self._dtype = next((p.dtype for p in self.unwrapped.parameters()), torch.float32)
        self._activations: dict[int, _Activation] = {}
        if meter is not None:
            meter.leave_out(self.unwrapped)

    @property
    def trains(self) -> bool:
        """Whether any of the module's weights changes."""
        return self.optimizer is not None

    @property
    def unwrapped(self) -> nn.Module:
        """The module's model itself, without the gradient buffers around it."""
        return self.model.module if self.optimizer is not None else self.model

    def forward(
        self,
        microbatch: int,
        batch: EncoderBatch | CustomBatch | LanguageBatch | None,
        inputs: Mapping[str, Tensor],
    ) -> Tensor:
        """Run one microbatch.

        Args:
            microbatch: names the activation until ``backward``.
            batch: what to compute on; None where this lane has nothing, and then nothing runs.
            inputs: received rows by name; those that require a gradient get one.

        Returns:
            The stage's rows, or the LLM's sum of token losses.
        """
        if batch is None:
            self._activations[microbatch] = _Activation(None, dict(inputs))
            return torch.zeros(0, self._width, dtype=self._dtype, device=self._device)
        present = {name: rows for name, rows in inputs.items() if len(rows)}
        with self._watched():
            output: Tensor = self.model(batch, present)
        has_backward = output.requires_grad and torch.is_grad_enabled()
        end = get_gradient_edge(output) if has_backward else None
        self._activations[microbatch] = _Activation(end, dict(inputs))
        return output

    def backward(self, microbatch: int, grad_TD: Tensor | None) -> dict[str, Tensor]:
        """Run a microbatch's backward and let its activations go.

        Args:
            microbatch: as in ``forward``.
            grad_TD: gradient of the stage's rows; where its output is a loss, what that was
                multiplied with, or None for 1.

        Returns:
            The gradient of the received rows by name, zero where nothing depended on them.
        """
        grads = self._backward(microbatch, grad_TD)
        if self._weight_gradients is not None:
            self._weight_gradients.run(microbatch)
        return grads

    def backward_input(self, microbatch: int, grad_TD: Tensor | None) -> dict[str, Tensor]:
        """Run the part of a microbatch's backward that others wait for, as ``backward`` does.

        The gradients of the matrices wait for ``backward_weight``. The stage was built to split
        its backward, or is frozen and has no other part.
        """
        assert self._weight_gradients or not self.trains, f"{self.name} has no split backward"
        if grad_TD is not None and self._weight_gradients is not None:
            grad_TD = grad_TD.clone()  # it waits too, while its buffer receives the next
        return self._backward(microbatch, grad_TD)

    def backward_weight(self, microbatch: int) -> None:
        """Run the other part; microbatches come in the order of their ``backward_input``."""
        assert self._weight_gradients is not None, f"{self.name} has no split backward"
        self._weight_gradients.run(microbatch)

    def _backward(self, microbatch: int, grad_TD: Tensor | None) -> dict[str, Tensor]:
        kept = self._activations.pop(microbatch)
        if kept.end is not None:
            with self._watched(), self._collected(microbatch):
                torch.autograd.backward(kept.end, grad_TD)
        return {
            name: rows.grad if rows.grad is not None else torch.zeros_like(rows)
            for name, rows in kept.inputs.items()
        }

    def _watched(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if self._meter is None else self._meter.watch()

    def _collected(self, microbatch: int) -> contextlib.AbstractContextManager[object]:
        if self._weight_gradients is None:
            return contextlib.nullcontext()
        return self._weight_gradients.collect(microbatch)

    def release(self, microbatch: int) -> None:
        """Drop the activations of a microbatch that has no backward."""
        self._activations.pop(microbatch)

    def close(self) -> None:
        """Let go of what would keep the model in memory; nothing runs afterwards."""
        self._activations.clear()
        if isinstance(self.unwrapped, LanguageModel):
            self.unwrapped.close()


def build_stage(
    name: str,
    job: JobConfig,
    groups: ProcessGroupCollection,
    device: torch.device,
    vp_stage: int = 0,
    split: Collection[str] = (),
    meter: ActivationMeter | None = None,
) -> Stage:
    """Build one of this rank's stages of a module, with its first weights.

    Args:
        name: of the module.
        job: the job.
        groups: the module's process groups.
        device: where it computes.
        vp_stage: which of the rank's stages of the module.
        split: names of the stages that run ``backward_input`` and ``backward_weight``.
        meter: counts the activations.
    """
    module = job.modules[name]
    num_stages = groups.pp.size() * module.parallel.vpp
    number = vp_stage * groups.pp.size() + groups.pp.rank()
    stage = stage_name(name, number, num_stages)
    split_backward = stage in split
    with cuda_means_cpu():
        model = _build_model(name, job, groups, vp_stage, split_backward)
    if module.lora is not None:
        add_lora(name, model, module.lora)
    model.to(device=device, dtype=DTYPES[job.train.precision])
    _fill(name, job, model, groups)
    freeze(name, module, model)
    train_recomputed_layers(model)
    hold = None if meter is None else meter.hold
    later = WeightGradients(model, hold) if split_backward else None
    width = job.language.model.hidden_size
    if number < num_stages - 1:
        width = model.width if isinstance(module, CustomModule) else module.model.hidden_size
    if not module.trainable:
        return Stage(stage, name, model, groups, None, width, device, later, meter)
    wrapped = wrap(model, groups)
    optimizer = ModuleOptimizer(
        wrapped, groups, job.train.optimizer, module.lr, module.weight_decay
    )
    return Stage(stage, name, wrapped, groups, optimizer, width, device, later, meter)


def _build_model(
    name: str, job: JobConfig, groups: ProcessGroupCollection, vp_stage: int, split_backward: bool
) -> nn.Module:
    module, precision = job.modules[name], job.train.precision
    if isinstance(module, GptModule):
        return LanguageModel(module, groups, vp_stage, split_backward, precision)
    if isinstance(module, TransformerModule):
        return Encoder(module, job.language.model, groups, split_backward, precision)
    found = import_encoder(name, module)
    return CustomEncoder(name, module, found, job.language.model, groups, job.seed, precision)


def _fill(name: str, job: JobConfig, model: nn.Module, groups: ProcessGroupCollection) -> None:
    if isinstance(model, CustomEncoder):
        model.fill(job.seed)
    else:
        fill_first_weights(name, job.modules[name], model, job.seed, groups.tp)
    if job.start_from is not None:
        start_from(job.start_from, name, model, groups.tp)
