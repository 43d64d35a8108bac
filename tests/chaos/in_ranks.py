"""Moments in a rank's life, marked by wrapping methods of the product where they pass."""

from collections.abc import Callable
from typing import Any

from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from actors.courier import Courier
from disagg_train.boundary.communicator import Communicator
from disagg_train.boundary.watchdog import Watchdog
from disagg_train.checkpoint import sharded
from disagg_train.engine import optimizer
from disagg_train.engine.executor import Executor
from disagg_train.engine.inputs import InputLoader
from disagg_train.engine.state import RankState
from tests.chaos.faults import Fuse, Moment
from tests.chaos.wrapping import after, before

_EVALUATION = -1


def arm_rank(fuse: Fuse) -> None:
    """Let faults happen in this process, a rank's, whose modules are being built."""
    _arm_steps(fuse)
    _arm_keeping(fuse)
    _arm_set_up(fuse)


def _arm_steps(fuse: Fuse) -> None:
    steps = _Steps(fuse)

    def passes(moment: Moment) -> Callable[..., None]:
        return lambda *_, **__: steps.here(moment)

    before(Executor, "run", steps.begin)
    before(Watchdog, "check", steps.check)
    after(Communicator, "launch", passes("transfer sent"))
    before(Communicator, "finish", passes("transfer awaited"))
    before(optimizer, "finalize_model_grads", passes("gradient sync"))
    after(optimizer, "finalize_model_grads", passes("gradients synced"))
    copying_back = "_copy_main_params_to_model_params"
    before(DistributedOptimizer, copying_back, passes("weights half updated"))
    after(DistributedOptimizer, "step_with_ready_grads", passes("weights updated"))


class _Steps:
    """Tells training from evaluation, and how far a step's ops have come."""

    def __init__(self, fuse: Fuse) -> None:
        self._fuse = fuse
        self._trains = False
        self._num_ops = self._ops_begun = 0

    def begin(self, executor: Executor, program: Any, plan: Any, *_: Any) -> None:
        del executor
        self._trains, self._num_ops, self._ops_begun = plan.step != _EVALUATION, len(program.ops), 0
        if self._trains:
            self._fuse.step = plan.step

    def check(self, watchdog: Watchdog) -> None:
        """Pass an op; the watchdog is asked before every one."""
        del watchdog
        self._ops_begun += 1
        percent = 100 * self._ops_begun // max(self._num_ops, 1)
        self._fuse.at("op" if self._trains else "evaluation", percent, self._fuse.step)

    def here(self, moment: Moment) -> None:
        if self._trains:
            self._fuse.here(moment)


def _arm_keeping(fuse: Fuse) -> None:
    newest = {"steps_done": 0}

    def copying(state: RankState, steps_done: int, everything: bool) -> None:
        del state, everything
        newest["steps_done"] = steps_done

    def passes(moment: Moment) -> Callable[..., None]:
        return lambda *_, **__: fuse.here(moment, newest["steps_done"])

    before(RankState, "snapshot", copying)
    before(RankState, "_counts", passes("copying"))
    after(Courier, "_kept", passes("sending to vaults"))
    before(sharded._HashedStream, "write", passes("writing a checkpoint"))


def _arm_set_up(fuse: Fuse) -> None:
    def set_up(loader: InputLoader, samples: Any, makers: Any, edges: Any, place: int) -> None:
        del loader, samples, makers, edges
        fuse.be(place)
        fuse.here("setting up")

    before(InputLoader, "__init__", set_up)
    before(sharded.ModuleState, "fill", lambda *_: fuse.here("restoring"))
