"""One module's gradients and weights: Megatron's distributed optimizer, taken step by step.

Gradients are sums over tokens and over dp; ``sync`` divides them by the step's number of
target tokens. The norm and the decision to skip are settled by ``agree``, elsewhere.
"""

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.distributed.finalize_model_grads import finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn

from disagg_train.config.job import OptimizerConfig as JobOptimizer
from disagg_train.modules.cpu import cuda_means_cpu
from disagg_train.modules.weights import is_tied, is_tied_copy


def wrap(model: nn.Module, groups: ProcessGroupCollection) -> DistributedDataParallel:
    """Give a model contiguous gradients, summed over dp."""
    config = DistributedDataParallelConfig(
        use_distributed_optimizer=True,
        overlap_grad_reduce=True,  # asynchronous; when is for the schedule to say
        average_in_collective=False,
        grad_reduce_in_fp32=True,
        delay_wgrad_compute=model.config.delay_wgrad_compute,
    )
    with cuda_means_cpu():
        return DistributedDataParallel(model.config, config, model, pg_collection=groups)


def build_adam(
    model: DistributedDataParallel,
    groups: ProcessGroupCollection,
    job: JobOptimizer,
    clip_grad: float,
) -> MegatronOptimizer:
    """Build Megatron's distributed optimizer; with a ``clip_grad`` of 0 it clips nothing itself."""
    config = OptimizerConfig(
        optimizer="adam",
        lr=job.lr,
        weight_decay=job.weight_decay,
        adam_beta1=job.betas[0],
        adam_beta2=job.betas[1],
        adam_eps=job.eps,
        use_distributed_optimizer=True,
        clip_grad=clip_grad,
    )
    with cuda_means_cpu():
        return get_megatron_optimizer(
            config, [model], use_gloo_process_groups=False, pg_collection=groups
        )


class ModuleOptimizer:
    """Adam over one module.

    All ranks of an actor group must make the optimizers of their modules in the same order:
    Megatron gathers objects over the process's default world while it builds.
    """

    def __init__(
        self, model: DistributedDataParallel, groups: ProcessGroupCollection, job: JobOptimizer
    ) -> None:
        self._model, self._groups, self._clip = model, groups, job.clip_grad
        self._tied = [parameter for parameter in model.parameters() if is_tied(parameter)]
        self._optimizer = build_adam(model, groups, job, clip_grad=0.0)

    def zero_grad(self) -> None:
        """Forget the last step's gradients."""
        self._model.zero_grad_buffer()
        self._optimizer.zero_grad()
        for bucket_group in self._model.bucket_groups + self._model.expert_parallel_bucket_groups:
            bucket_group.is_last_microbatch = False  # no backward starts the sums by itself

    def start_sync(self) -> None:
        """Start to sum gradients over dp; what else the rank computes goes on meanwhile."""
        with cuda_means_cpu():
            self._model.start_grad_sync()

    def sync(self, num_target_tokens: int) -> None:
        """Sum gradients over dp (norms' over tp under sp, tied copies') and divide by N."""
        with cuda_means_cpu():
            finalize_model_grads([self._model], num_tokens=None, pg_collection=self._groups)
        for parameter in self._tied:
            self._add_other_copy(parameter)
        self._model.scale_gradients(1.0 / max(num_target_tokens, 1))

    def _add_other_copy(self, parameter: nn.Parameter) -> None:
        """Add the gradient of the other copy of a tied matrix, on the first or the last stage.

        Both stages add the same two numbers, so the copies stay equal to the last bit. They are
        their pipeline's first and last rank, however many stages a rank has.
        """
        stages, mine = self._groups.pp, self._summed_part(parameter)
        peer = 0 if is_tied_copy(parameter) else stages.size() - 1
        others = torch.empty_like(mine)
        crossing = [
            dist.P2POp(dist.isend, mine, group=stages, group_peer=peer),
            dist.P2POp(dist.irecv, others, group=stages, group_peer=peer),
        ]
        for work in dist.batch_isend_irecv(crossing):
            work.wait()
        mine += others

    def _summed_part(self, parameter: nn.Parameter) -> Tensor:
        """Return the part of a tied matrix's gradient that this lane has summed over all lanes.

        Megatron gives a tied matrix a bucket of its own, so that both stages cut it alike.
        """
        buckets = [bucket for buffer in self._model.buffers for bucket in buffer.buckets]
        (bucket,) = (bucket for bucket in buckets if parameter in bucket.params)
        lanes = self._groups.dp_cp
        parts: tuple[Tensor, ...] = bucket.grad_data.chunk(lanes.size())
        return parts[lanes.rank()]

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
