"""One module's gradients and weights: Megatron's distributed optimizer, taken step by step.

Gradients are sums over tokens and over dp; ``sync`` divides them by the step's number of
target tokens. The norm and the decision to skip are settled by ``agree``, elsewhere.

Of weights in bf16 or fp16 Megatron keeps fp32 copies, a shard on each dp rank, and changes
these; it tells by the weights' own type. The scale of an fp16 loss is the job's, not Megatron's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
from disagg_train.modules.weights import is_expert_parallel, is_tied, is_tied_copy

AVERAGES = ("exp_avg", "exp_avg_sq")
"""Adam's running averages of a weight's gradient and of its square."""


@dataclass(frozen=True)
class Shard:
    """The part of a trained weight that this rank's optimizer changes.

    Args:
        start: where it begins in the flattened local weight.
        master: its values in fp32, flat.
        averages: Adam's averages by name, flat; none before the first update.
    """

    start: int
    master: Tensor
    averages: Mapping[str, Tensor]


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
    """Build Megatron's distributed optimizer; with a ``clip_grad`` of 0 it clips nothing itself.

    Megatron marks the groups of biases and norms, but leaves it to a scheduler that is not used
    here to take the weight decay off them.
    """
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
        optimizer = get_megatron_optimizer(
            config, [model], use_gloo_process_groups=False, pg_collection=groups
        )
    for group in optimizer.param_groups:
        group["weight_decay"] = job.weight_decay * group["wd_mult"]
    return optimizer


class ModuleOptimizer:
    """Adam over one module.

    All ranks of an actor group must make the optimizers of their modules in the same order:
    Megatron gathers objects over the process's default world while it builds.

    Args:
        model: the module, or this rank's stage of it.
        groups: its process groups.
        job: the job's optimizer.
        lr: highest learning rate of the module, where it has one of its own.
        weight_decay: of the module, where it has one of its own.
    """

    def __init__(
        self,
        model: DistributedDataParallel,
        groups: ProcessGroupCollection,
        job: JobOptimizer,
        lr: float | None = None,
        weight_decay: float | None = None,
    ) -> None:
        self._model, self._groups, self._clip = model, groups, job.clip_grad
        self._lr_factor = 1.0 if lr is None else lr / job.lr
        self._tied = [p for p in model.parameters() if is_tied(p) and p.requires_grad]
        if weight_decay is not None:
            job = job.model_copy(update={"weight_decay": weight_decay})
        self._optimizer = build_adam(model, groups, job, clip_grad=0.0)
        self.num_updates = 0

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

    def sync(self, num_target_tokens: int, loss_scale: float = 1.0) -> None:
        """Sum gradients over dp (norms' over tp under sp, tied copies') and divide by N.

        Args:
            num_target_tokens: N.
            loss_scale: what the loss was multiplied with.
        """
        with cuda_means_cpu():
            finalize_model_grads([self._model], num_tokens=None, pg_collection=self._groups)
        for parameter in self._tied:
            self._add_other_copy(parameter)
        self._model.scale_gradients(1.0 / (max(num_target_tokens, 1) * loss_scale))

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
            for optimizer in self._parts:
                for grad in optimizer.get_grads_for_grad_norm():
                    squared += grad.double().square().sum().to(squared.device)
        return float(squared)

    @torch.no_grad()
    def step(self, learning_rate: float, grad_norm: float) -> None:
        """Clip by the norm over all modules and change the weights.

        Args:
            learning_rate: of the job, in this step; a module's own is as much of its highest.
            grad_norm: over all modules.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * self._lr_factor
        with cuda_means_cpu():
            if self._clip > 0.0:
                parameters = self._optimizer.get_parameters()
                clip_grad_by_total_norm_fp32(parameters, self._clip, grad_norm)
            self._optimizer.step_with_ready_grads()
        self.num_updates += 1

    @torch.no_grad()
    def master(self, parameter: nn.Parameter) -> Tensor:
        """Return a trained weight in fp32, as the optimizer keeps it.

        All ranks that hold the weight must call this: each has the fp32 copy of a shard.
        """
        if parameter.dtype == torch.float32:
            return parameter
        lanes = self._groups.expt_dp if is_expert_parallel(parameter) else self._groups.dp_cp
        whole = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
        if (shard := self.shard(parameter)) is not None:
            whole[shard.start : shard.start + shard.master.numel()] = shard.master
        dist.all_reduce(whole, group=lanes)
        return whole.view_as(parameter)

    def shard(self, parameter: nn.Parameter) -> Shard | None:
        """Return the part of a weight that this rank's optimizer changes, if there is one."""
        for optimizer in self._parts:
            if parameter in getattr(optimizer, "model_param_gbuf_map", {}):
                group, number = optimizer.model_param_group_index_map[parameter]
                master = optimizer.optimizer.param_groups[group]["params"][number]
                state = optimizer.optimizer.state.get(master, {})
                averages = {name: state[name] for name in AVERAGES if name in state}
                start = optimizer._get_model_param_range_map(parameter)["param"].start
                return Shard(start, master.detach(), averages)
        return None

    def resume(self, num_updates: int) -> None:
        """Go on after so many updates: make averages, for somebody to fill in.

        torch's Adam counts updates per weight, Transformer Engine's per group of weights.
        """
        self.num_updates = num_updates
        adams = (getattr(optimizer, "optimizer", None) for optimizer in self._parts)
        for adam in filter(None, adams if num_updates else ()):
            counts_each = isinstance(adam, torch.optim.Adam)
            for group in adam.param_groups:
                if not counts_each:
                    group["step"] = num_updates
                for master in group["params"]:
                    count = {"step": torch.tensor(float(num_updates))} if counts_each else {}
                    averages = {name: torch.zeros_like(master.detach()) for name in AVERAGES}
                    adam.state[master] = count | averages

    @property
    def _parts(self) -> list[Any]:
        """Megatron's optimizers: one, or one more for experts."""
        return getattr(self._optimizer, "chained_optimizers", [self._optimizer])
