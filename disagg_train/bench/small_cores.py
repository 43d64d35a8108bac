"""Jobs on ranks that have a part of a core each, and what their modules take there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from actors.pool import ActorPool
from actors.session import Session
from disagg_train.bench.core_share import core_share
from disagg_train.config.job import JobConfig
from disagg_train.data.index import checked_sizes
from disagg_train.data.source import open_source
from disagg_train.driver.profiling import Measured, Place, measure
from disagg_train.planner.profiles import Profile

CORES_PER_RANK = 0.25


@contextmanager
def on_small_cores(*sessions: Session) -> Iterator[None]:
    """Give the ranks of sessions a part of a core each; they are set up by then.

    Raises:
        ClusterError: this machine does not let this user limit processes.
    """
    homes = [home for session in sessions for group in session.groups for home in group.homes]
    with core_share([home.pid for home in homes], CORES_PER_RANK):
        yield


def profiled(pool: ActorPool, trials: Sequence[JobConfig]) -> tuple[Profile, float]:
    """Return what modules take there, and the largest error of the steps of a trial.

    Args:
        pool: has actors for the job.
        trials: of one job (``trial_jobs``).

    Raises:
        RankError: a rank died, hung or raised.
    """
    found = [_measured(pool, trial) for trial in trials]
    modules = {(m.module, m.parallel.model_dump_json()): m for each in found for m in each.modules}
    links = {(link.ends, link.crosses_nodes): link for each in found for link in each.links}
    errors = [m.step_error for m in modules.values() if m.step_error is not None]
    return Profile(list(modules.values()), list(links.values())), max(errors)


def _measured(pool: ActorPool, trial: JobConfig) -> Measured:
    sizes = checked_sizes(open_source(trial), trial, "train")
    with pool.session(trial) as session, on_small_cores(session):
        nodes = [home.node_id for group in session.groups for home in group.homes]
        place = Place(dict.fromkeys(trial.groups, "part of a core"), nodes)
        return measure(session.groups, trial, sizes, place)
