"""The Ray actor: a thin shell around one rank. Its constructor is cheap, ``setup`` is not.

Steps run one after the other on the actor's own thread; health calls answer from
the ``control`` concurrency group while that thread is blocked, and the samples of a coming
step are loaded from the group ``inputs``.
"""

import contextlib
import gc
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from numpy.typing import NDArray

from disagg_train.checkpoint.save import save_modules
from disagg_train.engine.setup import RankSetup
from disagg_train.metrics.records import BadSample, RankReport
from disagg_train.planner.step_plan import StepPlan

if TYPE_CHECKING:
    from disagg_train.engine.rank import Rank


@ray.remote(concurrency_groups={"control": 1, "inputs": 1}, max_restarts=0)
class RankActor:
    """One rank of one group; it can be set up for one job after another.

    Megatron takes seconds to import, so only ``setup`` does, and not whoever starts actors.
    """

    def __init__(self) -> None:
        self._rank: Rank | None = None
        self._failed_op = ""

    @ray.method(concurrency_group="control")
    def address(self) -> str:
        """Return the node's address."""
        return str(ray.util.get_node_ip_address())

    @ray.method(concurrency_group="control")
    def gpu_ids(self) -> list[str]:
        """Return the GPUs that Ray gave this actor."""
        return [str(gpu) for gpu in ray.get_gpu_ids()]

    @ray.method(concurrency_group="control")
    def current_op(self) -> str:
        """Return the op that is running, or that the last step failed in."""
        return self._rank.current_op if self._rank else self._failed_op

    @ray.method(concurrency_group="control")
    def process_id(self) -> int:
        """Return the process id."""
        return os.getpid()

    def setup(self, setup: RankSetup) -> None:
        """Build the rank's modules and join its groups."""
        from disagg_train.engine.rank import Rank

        self.teardown()
        self._failed_op = ""
        self._rank = Rank(setup)

    def train(self, plan: StepPlan, upcoming: StepPlan | None) -> RankReport:
        """Run one training step."""
        with self._leaving_on_failure():
            return self._ready().train(plan, upcoming)

    @ray.method(concurrency_group="inputs")
    def probe(self, plan: StepPlan) -> tuple[BadSample, ...]:
        """Load a coming step's samples while another one runs; return the bad ones."""
        return self._ready().probe(plan)

    def evaluate(self, plan: StepPlan) -> RankReport:
        """Run one evaluation."""
        with self._leaving_on_failure():
            return self._ready().evaluate(plan)

    @contextlib.contextmanager
    def _leaving_on_failure(self) -> Iterator[None]:
        """Leave all groups when a step fails, so that peers fail at once and stay usable."""
        try:
            yield
        except BaseException:
            self._failed_op = self._ready().current_op
            self.teardown()
            raise

    def save(self, folder: Path) -> dict[str, str]:
        """Write the weights that this rank is the first to hold; return file name -> SHA-256."""
        ready = self._ready()
        return save_modules(folder, ready.weights(), ready.rank)

    def weights(self) -> dict[str, NDArray[Any]]:
        """Return full weights by name, each on the first rank that holds it."""
        return self._ready().weights()

    def gradients(self) -> dict[str, NDArray[Any]]:
        """Return the last step's full gradients, each on the first rank that holds the weight."""
        return self._ready().gradients()

    def teardown(self) -> None:
        """Leave all groups and forget the job; the process stays warm for the next one."""
        rank, self._rank = self._rank, None
        if rank is not None:
            rank.close()
            del rank
            gc.collect()  # models hold themselves in cycles, and with them their groups' threads

    def _ready(self) -> "Rank":
        assert self._rank is not None, "setup comes first"
        return self._rank


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
