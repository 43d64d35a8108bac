"""One module's gradients and weights: Megatron's distributed optimizer, taken step by step.

Gradients are sums over tokens and over dp; ``sync`` divides them by the step's number of
target tokens. The norm and the decision to skip are settled by ``agree``, elsewhere.
"""

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.distributed.finalize_model_grads import finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import nn

from disagg_train.config.job import OptimizerConfig as JobOptimizer
from disagg_train.modules.cpu import cuda_means_cpu


def wrap(model: nn.Module, groups: ProcessGroupCollection) -> DistributedDataParallel:
    """Give a model contiguous gradients, summed over dp."""
    config = DistributedDataParallelConfig(
        use_distributed_optimizer=True,
        overlap_grad_reduce=False,
        average_in_collective=False,
        grad_reduce_in_fp32=True,
    )
    with cuda_means_cpu():
        return DistributedDataParallel(model.config, config, model, pg_collection=groups)


class ModuleOptimizer:
    """Adam over one module.

    All ranks of an actor group must make the optimizers of their modules in the same order:
    Megatron gathers objects over the process's default world while it builds.
    """

    def __init__(
        self, model: DistributedDataParallel, groups: ProcessGroupCollection, job: JobOptimizer
    ) -> None:
        self._model, self._groups, self._clip = model, groups, job.clip_grad
        config = OptimizerConfig(
            optimizer="adam",
            lr=job.lr,
            weight_decay=job.weight_decay,
            adam_beta1=job.betas[0],
            adam_beta2=job.betas[1],
            adam_eps=job.eps,
            use_distributed_optimizer=True,
            clip_grad=0.0,
        )
        with cuda_means_cpu():
            self._optimizer = get_megatron_optimizer(
                config, [model], use_gloo_process_groups=False, pg_collection=groups
            )

    def zero_grad(self) -> None:
        """Forget the last step's gradients."""
        self._model.zero_grad_buffer()
        self._optimizer.zero_grad()

    def sync(self, num_target_tokens: int) -> None:
        """Sum gradients over dp (and norms' over tp under sp) and divide by N."""
        with cuda_means_cpu():
            finalize_model_grads([self._model], num_tokens=None, pg_collection=self._groups)
        self._model.scale_gradients(1.0 / max(num_target_tokens, 1))

    def squared_norm(self) -> float:
        """Return this rank's part of the squared gradient norm: shards that it alone counts."""
        squared = torch.zeros((), dtype=torch.float64)
        with cuda_means_cpu():
            self._optimizer.prepare_grads()
            for optimizer in getattr(self._optimizer, "chained_optimizers", [self._optimizer]):
                for grad in optimizer.get_grads_for_grad_norm():
                    squared += grad.double().square().sum().to(squared.device)
        return float(squared)

    @torch.no_grad()
    def step(self, learning_rate: float, grad_norm: float) -> None:
        """Clip by the norm over all modules and change the weights."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        with cuda_means_cpu():
            if self._clip > 0.0:
                parameters = self._optimizer.get_parameters()
                clip_grad_by_total_norm_fp32(parameters, self._clip, grad_norm)
            self._optimizer.step_with_ready_grads()
