"""One pipeline stage of a module on one rank.

Forward keeps, per microbatch, what its backward will need.

Rows are ``[T, D]``: what an encoder gives the LLM, and the gradients that come back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn

from disagg_train.config.job import JobConfig
from disagg_train.config.modules import VitModule
from disagg_train.engine.optimizer import ModuleOptimizer, wrap
from disagg_train.modules.batch import EncoderBatch, LanguageBatch
from disagg_train.modules.cpu import cuda_means_cpu
from disagg_train.modules.gpt import LanguageModel
from disagg_train.modules.vit import VisionTransformer
from disagg_train.modules.weights import initialize
from disagg_train.schedule.graph import stage_name


@dataclass
class _Activation:
    output: Tensor | None
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
    ) -> None:
        self.name, self.module, self.model = name, module, model
        self.groups, self.optimizer = groups, optimizer
        self._width, self._device = width, device
        self._activations: dict[int, _Activation] = {}

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
        batch: EncoderBatch | LanguageBatch | None,
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
            return torch.zeros(0, self._width, device=self._device)
        present = {name: rows for name, rows in inputs.items() if len(rows)}
        output: Tensor = self.model(batch, present)
        self._activations[microbatch] = _Activation(output, dict(inputs))
        return output

    def backward(self, microbatch: int, grad_TD: Tensor | None) -> dict[str, Tensor]:
        """Run a microbatch's backward and let its activations go.

        Args:
            microbatch: as in ``forward``.
            grad_TD: gradient of the stage's rows; None where its output is a loss.

        Returns:
            The gradient of the received rows by name, zero where nothing depended on them.
        """
        kept = self._activations.pop(microbatch)
        if kept.output is not None and kept.output.requires_grad:
            kept.output.backward(grad_TD)
        return {
            name: rows.grad if rows.grad is not None else torch.zeros_like(rows)
            for name, rows in kept.inputs.items()
        }

    def release(self, microbatch: int) -> None:
        """Drop the activations of a microbatch that has no backward."""
        self._activations.pop(microbatch)


def build_stage(
    name: str, job: JobConfig, groups: ProcessGroupCollection, device: torch.device
) -> Stage:
    """Build this rank's stage of a module, with the weights that their names decide."""
    module = job.modules[name]
    with cuda_means_cpu():
        if isinstance(module, VitModule):
            model: nn.Module = VisionTransformer(module, job.language.model, groups)
        else:
            model = LanguageModel(module, groups)
    model.to(device)
    initialize(name, model, job.seed, groups.tp)
    _freeze(model, job, name)
    stage = stage_name(name, groups.pp.rank(), groups.pp.size())
    hands_on = groups.pp.rank() < groups.pp.size() - 1
    width = (module if hands_on else job.language).model.hidden_size
    if not module.trainable:
        return Stage(stage, name, model, groups, None, width, device)
    wrapped = wrap(model, groups)
    optimizer = ModuleOptimizer(wrapped, groups, job.train.optimizer)
    return Stage(stage, name, wrapped, groups, optimizer, width, device)


def _freeze(model: nn.Module, job: JobConfig, name: str) -> None:
    module = job.modules[name]
    for path, parameter in model.named_parameters():
        frozen = module.freeze
        if isinstance(module, VitModule) and path.startswith("projector."):
            frozen = module.freezes_projector
        parameter.requires_grad_(not frozen)
