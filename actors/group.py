"""A group of rank actors, as the driver's port wants it."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Lock, Thread, Timer
from typing import Any

import ray
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, RayActorError

from actors.agent import Home
from actors.courier import Courier
from actors.failure import explain
from actors.plans import StoredPlans
from disagg_train.engine.setup import RankSetup, StateSource
from disagg_train.errors import ClusterError, RankError, culprit
from disagg_train.metrics.records import BadSample, RankReport, SnapshotOrder, Stored
from disagg_train.planner.step_plan import StepPlan

_BLAME_S = 4.0


class ActorGroup:
    """The actors of one group, in the order of their ranks.

    Args:
        name: of the group.
        actors: one per rank.
        homes: where each actor's process is.
    """

    def __init__(
        self, name: str, actors: Sequence[ray.actor.ActorHandle], homes: Sequence[Home]
    ) -> None:
        self._name, self.actors, self.homes = name, list(actors), list(homes)
        self._plans = StoredPlans()

    @property
    def name(self) -> str:
        """Name of the group in the job file."""
        return self._name

    def share(self, plans: StoredPlans) -> None:
        """Hand out plans that all groups of a job put into the object store together."""
        self._plans = plans

    def give_up(self, reason: str) -> None:
        """Have every rank end the exchanges that it is at; returns at once."""
        for actor in self.actors:
            actor.give_up.remote(reason)

    def prepare(self) -> "Future[list[None]]":
        """Start importing what ranks need."""
        return self._all([actor.prepare.remote() for actor in self.actors])

    def setup(
        self,
        setups: Sequence[RankSetup],
        source: StateSource | None = None,
        couriers: Sequence[Courier] | None = None,
    ) -> "Future[list[str]]":
        """Start building every rank, from a state and with a courier each where these are given.

        The results say why a rank's output is not kept with the run, where it is to be and is not.
        """
        sent: Sequence[Courier | None] = couriers or [None] * len(setups)
        each = zip(self.actors, setups, sent, strict=True)
        return self._all(
            [actor.setup.remote(told, source, courier) for actor, told, courier in each]
        )

    def train(self, plan: StepPlan, upcoming: StepPlan | None) -> "Future[Sequence[RankReport]]":
        """Start a training step on every rank."""
        plan_ref = self._plans.ref(plan)
        upcoming_ref = None if upcoming is None else self._plans.ref(upcoming)
        return self._all([actor.train.remote(plan_ref, upcoming_ref) for actor in self.actors])

    def probe(self, plan: StepPlan) -> "Future[Sequence[Sequence[BadSample]]]":
        """Start loading a coming step's samples on every rank."""
        plan_ref = self._plans.ref(plan)
        return self._all([actor.probe.remote(plan_ref) for actor in self.actors])

    def evaluate(self, plan: StepPlan) -> "Future[Sequence[RankReport]]":
        """Start an evaluation on every rank."""
        plan_ref = self._plans.ref(plan)
        return self._all([actor.evaluate.remote(plan_ref) for actor in self.actors])

    def snapshot(self, order: SnapshotOrder) -> "Future[Sequence[None]]":
        """Have every rank copy its state after the steps handed out so far."""
        return self._all([actor.snapshot.remote(order) for actor in self.actors])

    def stored(self, order: SnapshotOrder) -> "Future[Sequence[Stored]]":
        """Return, once every rank's copy of an order is where it was to go, how that went."""
        return self._all([actor.stored.remote(order) for actor in self.actors])

    def weights(self) -> "Future[list[dict[str, NDArray[Any]]]]":
        """Start collecting full weights."""
        return self._all([actor.weights.remote() for actor in self.actors])

    def gradients(self) -> "Future[list[dict[str, NDArray[Any]]]]":
        """Start collecting full gradients."""
        return self._all([actor.gradients.remote() for actor in self.actors])

    def teardown(self) -> "Future[list[None]]":
        """Start making every rank leave its groups."""
        return self._all([actor.teardown.remote() for actor in self.actors])

    def kill(self) -> None:
        """End every actor's process."""
        for actor in self.actors:
            ray.kill(actor)

    def _all(self, refs: list[ray.ObjectRef]) -> "Future[Any]":
        """Return one future of all results; it fails as soon as one of them does."""
        return _Joined(refs, self._explain).future

    def _explain(self, rank: int, error: BaseException) -> Exception:
        return explain(error, self.actors[rank], self._name, rank, self.homes[rank].address)


class _Joined:
    """Joins the results of all ranks; fails as soon as a culprit is known.

    A rank that only lost contact with a peer waits a moment for the peer's own error.
    """

    def __init__(
        self, refs: list[ray.ObjectRef], explain_error: Callable[[int, BaseException], Exception]
    ) -> None:
        self.future: Future[list[Any]] = Future()
        self._results: dict[int, Any] = {}
        self._errors: list[BaseException] = []
        self._count, self._lock, self._explain = len(refs), Lock(), explain_error
        for rank, ref in enumerate(refs):
            ref.future().add_done_callback(lambda f, rank=rank: self._on_done(rank, f))

    def _on_done(self, rank: int, result: "Future[Any]") -> None:
        error = result.exception()
        if error is not None:  # Ray's thread is not held up: explaining asks the rank
            Thread(target=self._on_error, args=(rank, error), daemon=True).start()
            return
        with self._lock:
            self._results[rank] = result.result()
            if len(self._results) == self._count and not self.future.done():
                self.future.set_result([self._results[i] for i in range(self._count)])

    def _on_error(self, rank: int, reason: BaseException) -> None:
        error = self._explain(rank, reason)
        self._errors.append(error)
        if isinstance(error, RankError) and error.cause in ("peer", "collective"):
            timer = Timer(_BLAME_S, self._fail)
            timer.daemon = True
            timer.start()
        else:
            self._fail()

    def _fail(self) -> None:
        with self._lock:
            if not self.future.done():
                self.future.set_exception(culprit(self._errors))


def results(future: "Future[Any]", deadline_s: float, group: str, what: str) -> list[Any]:
    """Return a future's results.

    Raises:
        RankError: a rank failed, or the deadline passed.
    """
    try:
        found: list[Any] = future.result(timeout=deadline_s)
        return found
    except TimeoutError:
        raise RankError(f"{what} took longer than {deadline_s:g} s", group, -1) from None


def locate(name: str, actors: Sequence[ray.actor.ActorHandle], deadline_s: float) -> list[Home]:
    """Return where each actor's process is, once all of them run.

    Raises:
        ClusterError: one does not start before the deadline.
        RankError: one died while it started.
    """
    homes: list[Home] = []
    for rank, actor in enumerate(actors):
        try:
            homes.append(ray.get(actor.home.remote(), timeout=deadline_s))
        except GetTimeoutError:
            raise ClusterError(
                f"the actor of group {name!r} rank {rank} did not start in {deadline_s:g} s; "
                f"look at Ray's logs, or raise deadlines.setup_s"
            ) from None
        except RayActorError as error:
            raise explain(error, actor, name, rank, "") from None
    return homes
