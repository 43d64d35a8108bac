"""Training that stops at a checkpoint, and goes on from one on whatever layout."""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.pool import ActorPool
from actors.session import Session
from disagg_train.checkpoint.manifest import CheckpointStore, Manifest
from disagg_train.checkpoint.sharded import CheckpointSource, ModuleState
from disagg_train.config.job import JobConfig
from disagg_train.data.index import checked_sizes
from disagg_train.data.source import open_source
from disagg_train.driver import loop
from disagg_train.driver.plans import training_batches, training_plans
from disagg_train.metrics.records import SnapshotOrder, Stored
from disagg_train.planner.step_plan import StepPlan
from tests.parity.steps import DEADLINE_S, merged

State = dict[str, Tensor]


def plans_of(job: JobConfig, steps: int) -> list[StepPlan]:
    sizes = checked_sizes(open_source(job), job, "train")
    return list(islice(training_plans(job, training_batches(job, sizes)), steps))


def train(session: Session, plans: Sequence[StepPlan]) -> list[float]:
    """Return the loss of every step."""
    return [record.loss for record, _ in loop.train(session.groups, plans, DEADLINE_S)]


def weights(session: Session) -> Mapping[str, NDArray[Any]]:
    return merged([group.weights() for group in session.groups])


def stored(session: Session, order: SnapshotOrder) -> list[Stored]:
    """Have all ranks store their state; return how that went."""
    taken = [group.snapshot(order) for group in session.groups]
    assert all(future.result(DEADLINE_S) is not None for future in taken)
    pending = [group.stored(order) for group in session.groups]
    return [each for future in pending for each in future.result(DEADLINE_S)]


def save(session: Session, folder: Path, steps_done: int) -> CheckpointSource:
    """Save a checkpoint, and check that it is whole."""
    store = CheckpointStore(str(folder))
    results = stored(session, SnapshotOrder(steps_done, folder=store.begin(steps_done)))
    assert [each.error for each in results if each.error] == []
    files = {path: digest for each in results for path, digest in each.files.items()}
    store.commit(Manifest(steps_done, session.job.model_dump(mode="json"), files))
    manifest, notes = store.newest_sound()
    assert manifest is not None and (manifest.step, notes) == (steps_done, [])
    return CheckpointSource(store.address(steps_done), steps_done)


def state_in(source: CheckpointSource, job: JobConfig) -> State:
    """Return all that a checkpoint holds, but for random numbers."""
    states = [ModuleState(source.reader(module), module) for module in job.modules]
    return {n: state.read(n) for state in states for n in state.names if "rng" not in n}


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the names of tensors that are not the same to the last bit."""
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    return [name for name in one if _bytes(one[name]) != _bytes(other[name])]


def _bytes(values: Tensor | NDArray[Any]) -> bytes:
    if isinstance(values, Tensor):
        values = values.view(-1).view(torch.uint8).numpy()
    return values.tobytes()


def saved_and_continued(
    pool: ActorPool, job: JobConfig, folder: Path, before: int, after: int
) -> tuple[CheckpointSource, list[float], Mapping[str, NDArray[Any]]]:
    """Train, save on the way, and train on.

    Returns:
        The checkpoint, the losses after it, and the weights at the end.
    """
    plans = plans_of(job, before + after)
    with pool.session(job) as session:
        train(session, plans[:before])
        source = save(session, folder, before)
        return source, train(session, plans[before:]), weights(session)
