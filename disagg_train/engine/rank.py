"""One rank of a job: builds its modules and boundaries once, then runs step after step.

Ray actors and torchrun processes both hold one of these.
"""

from typing import Any

import torch
from numpy.typing import NDArray

from disagg_train.boundary.of_job import job_boundaries, job_placement, module_grid
from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.data.source import open_source
from disagg_train.device import choose_device
from disagg_train.engine import inspect
from disagg_train.engine.executor import Executor
from disagg_train.engine.inputs import InputLoader
from disagg_train.engine.links import open_links
from disagg_train.engine.setup import RankSetup
from disagg_train.engine.stage import Stage, build_stage
from disagg_train.engine.world import World
from disagg_train.metrics.records import RankReport
from disagg_train.modules import cpu
from disagg_train.modules.process_groups import make_process_groups
from disagg_train.planner.step_plan import StepPlan


class Rank:
    """One rank, ready to run steps.

    Raises:
        BoundaryError: another rank does not arrive before the deadline.
    """

    def __init__(self, setup: RankSetup) -> None:
        job = setup.job
        self._setup = setup
        self._device = choose_device(job.device)
        self._device.activate()
        cpu.install()
        self._placement = job_placement(job)
        deadline_s = job.deadlines.exchange_s
        self._world = World(
            setup.rendezvous, self._placement, setup.group, setup.rank, self._device, deadline_s
        )
        try:
            self._build(job)
        except BaseException:
            self._world.close()
            raise

    def _build(self, job: JobConfig) -> None:
        device, place = self._device.torch_device, self._world.place
        self._stages = self._build_stages(job, job.deadlines.exchange_s)
        self._links = open_links(job, self._world, job_boundaries(job), device)
        self._executor = Executor(
            self._world, self._stages, self._links, tuple(job.modules), LANGUAGE
        )
        dp_ranks = {
            name: module_grid(job, name).coordinates(self._setup.rank)["dp"]
            for name in self._stages
        }
        mine = {name: link.boundary for name, link in self._links.items()}
        self._loader = InputLoader(job, open_source(job), dp_ranks, mine, place, device)

    def _build_stages(self, job: JobConfig, deadline_s: float) -> dict[str, Stage]:
        stages = {}
        for name in self._placement.modules_on(self._setup.group):
            grid = module_grid(job, name)
            groups = make_process_groups(grid, self._device.collective_backend, deadline_s)
            stages[name] = build_stage(name, job, groups, self._device.torch_device)
        return stages

    @property
    def current_op(self) -> str:
        """The op that is running, for error messages; empty between steps."""
        return str(self._executor.current_op or "")

    def train(self, plan: StepPlan, upcoming: StepPlan | None) -> RankReport:
        """Run one training step, and load the next one's samples meanwhile."""
        inputs = self._loader.take(plan)
        if upcoming is not None:
            self._loader.prefetch(upcoming)
        return self._executor.run(self._setup.training_ops, plan, inputs)

    def evaluate(self, plan: StepPlan) -> RankReport:
        """Score held-out samples and decode their answers."""
        inputs = self._loader.take(plan)
        with torch.no_grad():
            return self._executor.run(self._setup.evaluation_ops, plan, inputs)

    def weights(self) -> dict[str, NDArray[Any]]:
        """Return full weights by full name; only each module's first rank returns any."""
        return inspect.full_weights(self._stages)

    def gradients(self) -> dict[str, NDArray[Any]]:
        """Return the last step's full gradients, as the optimizer used them (clipped).

        Only each module's first rank returns any.
        """
        return inspect.full_gradients(self._stages)

    def close(self) -> None:
        """Stop the loader and leave all groups."""
        self._loader.close()
        for link in self._links.values():
            link.close()
        self._world.close()
