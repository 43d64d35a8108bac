"""One rank of a job: builds its modules and boundaries once, then runs step after step.

Ray actors and torchrun processes both hold one of these.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray

from disagg_train.boundary.nccl import check_same_nccl
from disagg_train.boundary.of_job import (
    job_edges,
    job_graph,
    job_placement,
    module_grid,
    module_side,
)
from disagg_train.boundary.step_exchanges import Boundary, RankEdge
from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.config.modules import CustomModule, TransformerModule
from disagg_train.data.source import DataSource, open_source
from disagg_train.device import check_gpu_sharing, choose_device, torch_nccl_version
from disagg_train.engine import inspect
from disagg_train.engine.activations import ActivationMeter
from disagg_train.engine.batches import BatchMaker, EncoderBatches, LanguageBatches
from disagg_train.engine.custom_batches import CustomBatches
from disagg_train.engine.executor import Executor, Upcoming
from disagg_train.engine.freezing import check_patterns
from disagg_train.engine.inputs import InputLoader
from disagg_train.engine.links import open_links
from disagg_train.engine.loss_scale import LossScale
from disagg_train.engine.samples import Lane, SampleLoader
from disagg_train.engine.setup import RankSetup, StateSource
from disagg_train.engine.snapshot import Send, Snapshots
from disagg_train.engine.stage import Stage, build_stage
from disagg_train.engine.state import RankState, seed_random_numbers
from disagg_train.engine.world import World
from disagg_train.metrics.records import BadSample, RankReport, SnapshotOrder, Stored
from disagg_train.modules import cpu
from disagg_train.modules.custom import CustomEncoder
from disagg_train.modules.process_groups import make_process_groups
from disagg_train.planner.step_plan import StepPlan
from disagg_train.schedule.ops import OpKind
from disagg_train.schedule.program import Program


class Rank:
    """One rank, ready to run steps.

    Args:
        setup: what it is told.
        source: the state that it begins with; None for the first weights.
        data: the job's data source, where an earlier rank of this process has opened it.

    Raises:
        BoundaryError: another rank does not arrive before the deadline.
        CheckpointError: the state cannot be read, or is of another model.
    """

    def __init__(
        self,
        setup: RankSetup,
        source: StateSource | None = None,
        data: DataSource | None = None,
    ) -> None:
        job = setup.job
        self._setup = setup
        self._training = Program(setup.training_ops)
        self._evaluation = Program(setup.evaluation_ops)
        self._device = choose_device(job.device)
        self._device.activate()
        if self._device.kind == "cuda":
            _check_nccl(job)
        cpu.install()
        self._placement = job_placement(job)
        self._world = World(
            setup.rendezvous,
            self._placement,
            setup.group,
            setup.rank,
            self._device,
            deadline_s=job.deadlines.exchange_s,
            saving_s=job.deadlines.storing_s,
        )
        seed_random_numbers(job.seed, self._world.place)
        try:
            self._build(job, data)
        except BaseException:
            self._world.close()
            raise
        try:
            if source is not None:
                self._state.restore(source)
        except BaseException:
            self.close()
            raise

    def _build(self, job: JobConfig, data: DataSource | None) -> None:
        device, edges = self._device.torch_device, job_edges(job)
        self._meter = ActivationMeter()
        self._stages = self._build_stages(job, job.deadlines.exchange_s)
        self._links = open_links(
            job, self._world, edges, job_graph(job), device, _own_widths(self._stages)
        )
        scale = LossScale(job.train.loss_scale) if job.train.precision == "fp16" else None
        self._executor = Executor(
            self._world, self._stages, self._links, tuple(job.modules), self._meter, scale
        )
        self._state = RankState(self._stages, self._setup.group, self._setup.rank, scale)
        self._snapshots = Snapshots(self._state, self._world.saving, job.deadlines.storing_s)
        mine = {name: edges[name] for name in self._links}
        self.data = open_source(job) if data is None else data
        samples = SampleLoader(self.data, self._lanes(), job.encoders, job.data.workers)
        makers = self._batch_makers(job, mine, samples)
        self._loader = InputLoader(samples, makers, mine, self._world.place)

    def _build_stages(self, job: JobConfig, deadline_s: float) -> dict[str, Stage]:
        stages: list[Stage] = []
        ops = self._setup.training_ops
        split = {op.module for op in ops if op.kind is OpKind.BACKWARD_WEIGHT}
        for name in self._placement.modules_on(self._setup.group):
            parallel, backend = job.modules[name].parallel, self._device.collective_backend
            groups = make_process_groups(module_grid(job, name), parallel.ep, backend, deadline_s)
            mine = [
                build_stage(
                    name, job, groups, self._device.torch_device, vp_stage, split, self._meter
                )
                for vp_stage in range(parallel.vpp)
            ]
            check_patterns(name, job.modules[name], [stage.unwrapped for stage in mine])
            stages += mine
        return {stage.name: stage for stage in stages}

    def _lanes(self) -> set[Lane]:
        """Return the lanes whose samples this rank loads: later stages of encoders need none."""
        return {
            (stage.module, stage.groups.dp.rank())
            for stage in self._stages.values()
            if stage.module == LANGUAGE or stage.groups.pp.rank() == 0
        }

    def _batch_makers(
        self, job: JobConfig, edges: Mapping[str, RankEdge], source: DataSource
    ) -> dict[str, BatchMaker]:
        rank, device = self._setup.rank, self._device.torch_device
        makers: dict[str, BatchMaker] = {}
        for stage in self._stages.values():
            module, side = job.modules[stage.module], module_side(job, stage.module)
            if isinstance(module, CustomModule):
                makers[stage.module] = CustomBatches(module, side, rank, source, device)
            elif isinstance(module, TransformerModule):
                makers[stage.module] = EncoderBatches(module, side, rank, source, device)
            else:
                feeds = {n: e.source.module for n, e in edges.items() if isinstance(e, Boundary)}
                makers[stage.module] = LanguageBatches(side, rank, feeds, source, device)
        return makers

    @property
    def rank(self) -> int:
        """This rank's number in its group."""
        return self._setup.rank

    @property
    def current_op(self) -> str:
        """The op that is running, for error messages; empty between steps."""
        return str(self._executor.current_op or "")

    def tell_ops(self, tell: Callable[[str], None]) -> None:
        """Have ``tell`` called with every op before it runs, and with nothing after the last."""
        self._executor.on_op = lambda op: tell(str(op or ""))

    def train(self, plan: StepPlan, upcoming: StepPlan | None) -> RankReport:
        """Run one training step, and load the next one's samples meanwhile."""
        self._meter.active = self._setup.job.train.is_traced(plan.step)
        inputs, ahead = self._loader.take(plan), None
        if upcoming is not None:
            self._loader.prefetch(upcoming)
            ahead = Upcoming(upcoming.digest, partial(self._loader.peek, upcoming))
        return self._executor.run(self._training, plan, inputs, ahead)

    def probe(self, plan: StepPlan) -> tuple[BadSample, ...]:
        """Load a coming step's samples while another one runs; return the bad ones."""
        return self._loader.probe(plan)

    def evaluate(self, plan: StepPlan) -> RankReport:
        """Score held-out samples and decode their answers."""
        self._meter.active = False
        inputs = self._loader.take(plan)
        with torch.no_grad():
            return self._executor.run(self._evaluation, plan, inputs)

    def snapshot(self, order: SnapshotOrder, send: Send | None = None) -> None:
        """Copy the state between two steps, and start to store the copy.

        Args:
            order: what to do with it.
            send: brings it to the vaults, where the order says so.
        """
        self._snapshots.take(order, send)

    def stored(self, order: SnapshotOrder) -> Stored:
        """Wait until the latest snapshot is stored; return how that went."""
        return self._snapshots.stored(order)

    def give_up(self, reason: str) -> None:
        """End the exchanges under way, whose peers are gone; from any thread."""
        self._world.watchdog.fail(reason)

    def weights(self) -> dict[str, NDArray[Any]]:
        """Return full weights by full name, each on the first rank that holds it."""
        return inspect.full_weights(self._stages)

    def gradients(self) -> dict[str, NDArray[Any]]:
        """Return the last step's full gradients, as the optimizer used them (clipped).

        Each is returned by the first rank that holds the weight.
        """
        return inspect.full_gradients(self._stages)

    def close(self) -> None:
        """Stop the loader, leave all groups and let go of the models."""
        self._loader.close()
        self._snapshots.close()
        for stage in self._stages.values():
            stage.close()
        for link in self._links.values():
            link.close()
        self._world.close()


def _own_widths(stages: Mapping[str, Stage]) -> dict[str, int]:
    """Return the widths of encoders of one's own, which no job file knows."""
    models = {stage.module: stage.unwrapped for stage in stages.values()}
    return {name: m.width for name, m in models.items() if isinstance(m, CustomEncoder)}


def _check_nccl(job: JobConfig) -> None:
    """Refuse, before anything is built, what the NCCL found cannot do.

    Raises:
        ConfigError: it cannot put several ranks on a GPU, or CuPy loaded another one than torch.
    """
    fewest_gpus = min(group.gpus_per_rank for group in job.groups.values())
    check_gpu_sharing(fewest_gpus, torch_nccl_version())
    if job.num_ranks > 1:
        check_same_nccl()
