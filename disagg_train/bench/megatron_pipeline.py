"""The LLM alone under megatron-core's own non-interleaved 1F1B, on gloo and CPUs.

The schedule, its messages, DDP and the optimizer are Megatron's, as they are released; weights,
layers, the settings of both and the loading of samples are those of our ranks. What Megatron
takes for granted about CUDA is answered as for our ranks (``modules/cpu.py``), except the one
``device="cuda"`` of its schedule, which ``_TorchOnCpu`` answers at no cost. Its messages run on
gloo as they are: it sends and receives in one batch and waits for both.

Shapes: S rows of a microbatch's packed stream, B is 1.
"""

from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.distributed.finalize_model_grads import finalize_model_grads
from megatron.core.pipeline_parallel import schedules
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore

from disagg_train.boundary.of_job import module_grid, module_side
from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.data.source import open_source
from disagg_train.device import choose_device
from disagg_train.engine.batches import LanguageBatches
from disagg_train.engine.inputs import InputLoader
from disagg_train.engine.optimizer import build_adam, wrap
from disagg_train.engine.samples import SampleLoader
from disagg_train.engine.setup import RankSetup
from disagg_train.metrics.records import RankReport
from disagg_train.modules import cpu
from disagg_train.modules.batch import LanguageBatch
from disagg_train.modules.cpu import cuda_means_cpu
from disagg_train.modules.gpt import LanguageModel
from disagg_train.modules.process_groups import make_process_groups
from disagg_train.modules.weights import initialize
from disagg_train.planner.step_plan import StepPlan


class MegatronRank:
    """One pipeline stage of the LLM, driven by Megatron.

    Args:
        setup: the rank; its job has no encoder, and its op lists are not looked at.
    """

    def __init__(self, setup: RankSetup) -> None:
        job = setup.job
        choose_device(job.device).activate()
        cpu.install()
        vars(schedules)["torch"] = _TorchOnCpu()
        _join(setup)
        deadline_s = job.deadlines.exchange_s
        self._groups = make_process_groups(module_grid(job, LANGUAGE), 1, "gloo", deadline_s)
        self._model = _build_model(job, self._groups)
        adam = job.train.optimizer
        self._optimizer = build_adam(self._model, self._groups, adam, adam.clip_grad)
        self._messages = P2PCommunicator(self._groups.pp, self._model.config)
        self._place, self._loader = setup.rank, _open_loader(job, setup.rank)

    def train(self, plan: StepPlan, upcoming: StepPlan | None) -> RankReport:
        """Run one training step; load the next one's samples meanwhile.

        The loss is known on the last stage and zero on the others.
        """
        batches = self._loader.take(plan).batches[LANGUAGE]
        if upcoming is not None:
            self._loader.prefetch(upcoming)
        self._model.zero_grad_buffer()
        self._optimizer.zero_grad()
        loss_sums = schedules.forward_backward_pipelining_without_interleaving(
            forward_step_func=_forward_step,
            data_iterator=iter(batches),
            model=self._model,
            num_microbatches=plan.num_microbatches,
            seq_length=_common_length(batches),
            micro_batch_size=1,
            p2p_communicator=self._messages,
            pg_collection=self._groups,
        )
        self._update(plan.learning_rate)
        return RankReport(self._place, (LANGUAGE,), float(sum(loss_sums)))

    def _update(self, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        with cuda_means_cpu():
            self._optimizer.step()

    def close(self) -> None:
        """Stop the loader and leave all groups."""
        self._loader.close()
        dist.destroy_process_group()


class _TorchOnCpu:
    """``torch`` for Megatron's schedule, whose ``zeros`` are on the CPU.

    ``cuda_means_cpu`` would do it too, but every operation of a forward would pay for it.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def zeros(*args: Any, device: str, **kwargs: Any) -> Tensor:
        del device
        return torch.zeros(*args, **kwargs)


def _join(setup: RankSetup) -> None:
    """Open the default world; the LLM's group is all of it."""
    meeting, job = setup.rendezvous, setup.job
    timeout = timedelta(seconds=job.deadlines.exchange_s)
    store = TCPStore(meeting.host, meeting.port, is_master=False, timeout=timeout)
    dist.init_process_group(
        "gloo",
        store=PrefixStore(f"megatron/e{meeting.epoch}", store),
        rank=setup.rank,
        world_size=job.num_ranks,
        timeout=timeout,
    )


def _build_model(job: JobConfig, groups: ProcessGroupCollection) -> DistributedDataParallel:
    """Return this stage's GPT with the weights that their names decide, inside Megatron's DDP."""
    with cuda_means_cpu():
        language = LanguageModel(job.language, groups)
    initialize(LANGUAGE, language, job.seed, groups.tp)
    model = wrap(language.gpt, groups)
    model.config.no_sync_func = model.no_sync
    model.config.finalize_model_grads_func = _finalize
    return model


def _finalize(*args: Any, **kwargs: Any) -> None:
    with cuda_means_cpu():
        finalize_model_grads(*args, **kwargs)


def _open_loader(job: JobConfig, rank: int) -> InputLoader:
    cpu_device = torch.device("cpu")
    samples = SampleLoader(open_source(job), [(LANGUAGE, 0)], {}, job.data.workers)
    maker = LanguageBatches(module_side(job, LANGUAGE), rank, {}, samples, cpu_device)
    return InputLoader(samples, {LANGUAGE: maker}, {}, rank)


def _common_length(batches: tuple[Any, ...]) -> int:
    """Return S: all microbatches have it, so that Megatron need not ask for shapes."""
    (length,) = {batch.token_ids_BS.shape[1] for batch in batches}
    return length


def _forward_step(
    batches: Iterator[LanguageBatch], model: DistributedDataParallel
) -> tuple[Tensor, partial[tuple[Tensor, Tensor, Tensor]]]:
    """Return what a stage makes of the next microbatch, and what turns that into a loss."""
    batch = next(batches)
    found = model(
        input_ids=batch.token_ids_BS,
        position_ids=None,
        attention_mask=None,
        labels=batch.labels_BS.clamp(min=0),
        packed_seq_params=batch.packing,
    )
    return found, partial(_sum_of_losses, batch.labels_BS >= 0)


def _sum_of_losses(has_loss_BS: Tensor, losses_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum of token losses, the number of target tokens, and the sum to report."""
    loss_sum = losses_BS[has_loss_BS].sum()
    return loss_sum, has_loss_BS.sum().to(torch.int), loss_sum.detach()
