"""The Ray actor: a thin shell around one rank. Its constructor is cheap, ``setup`` is not.

Steps run one after the other on the actor's own thread; health calls answer from
the ``control`` concurrency group while that thread is blocked, and the samples of a coming
step are loaded from the group ``inputs``.
"""

import contextlib
import functools
import gc
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ray
from numpy.typing import NDArray

from actors.agent import Home
from actors.beacon import Beacon, write_stacks_on_signal
from actors.courier import Courier
from actors.failure import cause_of
from actors.rank_output import RankOutput
from disagg_train.config.secret_values import mask_error, masked
from disagg_train.engine.setup import RankSetup, StateSource
from disagg_train.errors import BoundaryError, Cause
from disagg_train.metrics.events import event
from disagg_train.metrics.records import BadSample, RankReport, SnapshotOrder, Stored
from disagg_train.planner.step_plan import StepPlan

if TYPE_CHECKING:
    from disagg_train.data.source import DataSource
    from disagg_train.engine.rank import Rank


_START = "start_step"
"""What a rank is at before a step's first op: it waits for its inputs, and for all others."""


@dataclass(frozen=True)
class Status:
    """What a rank says of itself.

    Args:
        at: the op that runs, or else what the rank does; where it failed, what it failed in.
        stack: of the thread that runs steps, or of the error that it failed with.
        is_busy: whether that thread runs something.
        failed: why it failed; None where it did not.
    """

    at: str
    stack: str
    is_busy: bool
    failed: Cause | None = None


@ray.remote(concurrency_groups={"control": 1, "inputs": 1, "storing": 2}, max_restarts=0)
class RankActor:
    """One rank of one group; it can be set up for one job after another.

    Megatron takes seconds to import, so only ``prepare`` and ``setup`` do that, and not whoever
    starts actors.
    """

    def __init__(self) -> None:
        self._rank: Rank | None = None
        self._courier: Courier | None = None
        self._data: DataSource | None = None
        self._beacon, self._stacks = Beacon(), write_stacks_on_signal()
        self._output = RankOutput()
        self._at = ""
        self._thread = 0
        self._is_busy = False
        self._failed: Status | None = None
        self._taken: SnapshotOrder | None = None
        self._step_s = 0.0
        self._changed = threading.Condition()

    @ray.method(concurrency_group="control")
    def home(self) -> Home:
        """Return where this process is, and what it has there."""
        address, node_id = ray.util.get_node_ip_address(), ray.get_runtime_context().get_node_id()
        gpus = tuple(str(gpu) for gpu in ray.get_gpu_ids())
        return Home(node_id, str(address), os.getpid(), self._beacon.fd, self._stacks, gpus)

    @ray.method(concurrency_group="control")
    def current_op(self) -> str:
        """Return the op that is running, or that the last step failed in."""
        return self._failed.at if self._failed else self._at

    @ray.method(concurrency_group="control")
    def status(self) -> Status:
        """Return what this rank is at, and where in the code."""
        if self._failed is not None:
            return self._failed
        frame = sys._current_frames().get(self._thread) if self._is_busy else None
        stack = "".join(traceback.format_stack(frame)) if frame else ""
        return Status(self._at, stack, self._is_busy)

    @ray.method(concurrency_group="control")
    def give_up(self, reason: str) -> None:
        """End the exchanges under way: on a GPU nothing else does so before their deadline."""
        if (rank := self._rank) is not None:
            rank.give_up(reason)

    def prepare(self) -> None:
        """Import what ``setup`` needs, so that no rank waits for another one's imports there."""
        from disagg_train.device import without_compiler

        with without_compiler():
            from disagg_train.engine.rank import Rank

        del Rank
        _spare_the_collector()

    def setup(
        self,
        setup: RankSetup,
        source: StateSource | None = None,
        courier: Courier | None = None,
    ) -> str:
        """Build the rank's modules and join its groups; groups that it is in are left first.

        Until ``teardown``, the data source stays the one that was opened first.

        Args:
            setup: what it is told.
            source: the state that it begins with.
            courier: takes its copies to the vaults, where they are kept.

        Returns:
            Why its output is not kept with the run; empty where it is, or is not to be.
        """
        from disagg_train.engine.rank import Rank

        self._leave()
        if self._failed is not None:
            _free_models()  # while it failed, the error held its frames, and these the model
        self._failed, self._courier, self._taken = None, courier, None
        self._step_s = setup.job.deadlines.step_s
        reason = self._keep_output(setup)
        with self._doing("setup"):
            self._rank = Rank(setup, source, self._data)
            self._rank.tell_ops(self._tell)
            self._data = self._rank.data
        event("set up", step=source.steps_done if source else 0)
        return reason

    def _keep_output(self, setup: RankSetup) -> str:
        if setup.log is None:
            self._output.let_go()
            return ""
        node = ray.util.get_node_ip_address()
        about = f"node {node}, process {os.getpid()}, epoch {setup.rendezvous.epoch}"
        return self._output.keep(setup.log, setup.group, setup.rank, about)

    def train(self, plan: StepPlan, upcoming: StepPlan | None) -> RankReport:
        """Run one training step."""
        with self._doing(_START):
            return self._ready().train(plan, upcoming)

    @ray.method(concurrency_group="inputs")
    def probe(self, plan: StepPlan) -> tuple[BadSample, ...]:
        """Load a coming step's samples while another one runs; return the bad ones."""
        said = self._ready().probe(plan)
        found = tuple(replace(bad, reason=masked(bad.reason)) for bad in said)
        for bad in found:
            event(f"sample {bad.key} is bad: {bad.reason}", plan.step, level=logging.WARNING)
        return found

    def evaluate(self, plan: StepPlan) -> RankReport:
        """Run one evaluation."""
        with self._doing(_START):
            return self._ready().evaluate(plan)

    def snapshot(self, order: SnapshotOrder) -> None:
        """Copy the rank's state and begin to store the copy."""
        with self._doing("snapshot"):
            self._ready().snapshot(order, self._courier.send if self._courier else None)
        with self._changed:
            self._taken = order
            self._changed.notify_all()

    @ray.method(concurrency_group="storing")
    def stored(self, order: SnapshotOrder) -> Stored:
        """Return how storing went, once it is done; the order may still wait behind a step.

        Raises:
            BoundaryError: the rank failed, or its step takes too long.
        """
        rank = self._ready()
        with self._changed:
            self._changed.wait_for(
                lambda: self._taken == order or self._rank is not rank, self._step_s
            )
            if self._taken != order or self._rank is not rank:
                raise BoundaryError(f"this rank did not come to copy its state: {order}")
        return rank.stored(order)

    def _tell(self, op: str) -> None:
        self._at = op
        self._beacon.show(op)

    @contextlib.contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        """Say what the rank is at; when that fails, leave all groups.

        Peers then fail at once and stay usable.
        """
        if self._failed is not None:
            self._ready()
        self._thread, self._is_busy = threading.get_ident(), True
        self._tell(what)
        try:
            yield
            self._tell("")
        except BaseException as error:
            mask_error(error)  # only this process knows the secrets of its environment
            stack = masked(traceback.format_exc())
            self._failed = Status(self._at, stack, False, cause_of(error))
            said = f"failed during {self._at}: {type(error).__name__}: {error}"
            event(said, level=logging.ERROR)
            sys.stderr.write(stack)
            with contextlib.suppress(Exception):  # the first error is the one to tell
                self._leave()
            raise
        finally:
            self._is_busy = False

    def weights(self) -> dict[str, NDArray[Any]]:
        """Return full weights by name, each on the first rank that holds it."""
        return self._ready().weights()

    def gradients(self) -> dict[str, NDArray[Any]]:
        """Return the last step's full gradients, each on the first rank that holds the weight."""
        return self._ready().gradients()

    def teardown(self) -> None:
        """Leave all groups and forget the job; the process stays warm for the next one."""
        self._leave()
        self._data = None
        self._output.let_go()

    def _leave(self) -> None:
        """Leave all groups, and let go of all but the data source, which is slow to open."""
        with self._changed:
            rank, self._rank = self._rank, None
            self._changed.notify_all()
        if rank is not None:
            rank.close()
            del rank
            _free_models()

    def _ready(self) -> "Rank":
        """Return the rank.

        Raises:
            BoundaryError: it failed, and left its groups.
        """
        rank = self._rank
        if rank is None and self._failed is not None:
            raise BoundaryError(f"this rank failed before, during {self._failed.at}")
        assert rank is not None, "setup comes first"
        return rank


@functools.cache
def _spare_the_collector() -> None:
    """Have Python's collector look only at what comes after the first call of this.

    What is imported stays; to look at its objects each time takes about 0.3 s.
    """
    gc.collect()
    gc.freeze()


def _free_models() -> None:
    """Free models that nothing holds but themselves, and with them their groups' threads.

    Some of their cycles Python's collector sees only once it has freed what autograd's nodes
    shared, so it runs twice.
    """
    gc.collect()
    gc.collect()


def start_actor(
    num_gpus: float = 0.0,
    num_cpus: float = 1.0,
    place: Any = None,
    environment: Mapping[str, str] | None = None,
) -> Any:
    """Start a rank actor; return its handle at once.

    Args:
        num_gpus: GPUs that it takes.
        num_cpus: CPUs that it takes.
        place: Ray's scheduling strategy, where it must sit in a placement group.
        environment: variables that its process starts with.
    """
    remote: Any = RankActor
    options = {"num_gpus": num_gpus, "num_cpus": num_cpus, "scheduling_strategy": place}
    if environment:
        options["runtime_env"] = {"env_vars": dict(environment)}
    return remote.options(**options).remote()
