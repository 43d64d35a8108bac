"""Profiles a job on its ranks: ``disagg-train profile``, and scripts.

Every trial is written when it is done; one that a folder has already is not run again.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from actors.cluster import RayConnection, total_resources
from actors.hardware import group_hardware
from actors.pool import ActorPool
from actors.session import Session, on_cluster
from disagg_train.config.job import JobConfig
from disagg_train.data.index import checked_sizes
from disagg_train.data.source import open_source
from disagg_train.driver.profiling import Measured, Place, measure
from disagg_train.planner.measurements import (
    LinkMeasurement,
    ModuleMeasurement,
    file_of,
    read_links,
    read_module,
    write_link,
    write_module,
)


class Profiler:
    """Measures a job's modules; a context manager that closes what it opened.

    Args:
        trials: the job in the degrees to measure (``trial_jobs``).
        folder: where measurements are kept.
        address: of a running Ray cluster (``auto`` for this machine's); None starts a local one.
        pool: warm actors to use; actors of its own are made and ended where none is given.

    Raises:
        ConfigError: it is not clear what GPUs the job runs on.
        DataError: the data set cannot be used.
    """

    def __init__(
        self,
        trials: Sequence[JobConfig],
        folder: Path,
        address: str | None = None,
        pool: ActorPool | None = None,
    ) -> None:
        self.trials, job = tuple(trials), trials[0]
        self.folder, self._pool = folder.expanduser(), pool
        self._sizes = checked_sizes(open_source(job), job, "train")
        self._open = ExitStack()
        if pool is None:
            connection = RayConnection(address, job.num_ranks)
            self._open.callback(connection.close)
        try:
            self._hardware = group_hardware(job, total_resources())
        except BaseException:
            self._open.close()
            raise
        self.missing = [trial for trial in self.trials if not self._is_measured(trial)]

    def _is_measured(self, trial: JobConfig) -> bool:
        return all(path.exists() for path in self._files(trial))

    def _files(self, trial: JobConfig) -> list[Path]:
        return [
            file_of(self.folder, trial, name, self._hardware[module.group])
            for name, module in trial.modules.items()
        ]

    def modules(self) -> list[ModuleMeasurement]:
        """Return what was measured by now of the modules of all trials, each once."""
        files = dict.fromkeys(path for trial in self.trials for path in self._files(trial))
        return [read_module(path) for path in files if path.exists()]

    def links(self) -> list[LinkMeasurement]:
        """Return what was measured of links between such ranks, in this profile or earlier."""
        own = set(self._hardware.values())
        return [link for link in read_links(self.folder) if own & set(link.ends)]

    def run(self) -> Iterator[Measured]:
        """Run the trials that are missing, one after the other on the same actors.

        Raises:
            ClusterError: the cluster cannot hold the job.
            DataError: a sample cannot be used.
            RankError: a rank died, hung or raised.
        """
        if not self.missing:
            return
        with self._session(self.missing[0]) as session:
            for number, trial in enumerate(self.missing):
                if number:
                    session.renew(trial, (), None)
                nodes = [home.node_id for group in session.groups for home in group.homes]
                place = Place(self._hardware, nodes)
                measured = measure(session.groups, session.job, self._sizes, place)
                self._write(measured)
                yield measured

    def _session(self, job: JobConfig) -> Session:
        return on_cluster(job) if self._pool is None else self._pool.session(job)

    def _write(self, measured: Measured) -> None:
        """Write modules last: they tell that the trial is done."""
        for link in measured.links:
            write_link(self.folder, link)
        for module in measured.modules:
            write_module(self.folder, module)

    def close(self) -> None:
        """Stop the Ray that was started here, if any."""
        self._open.close()

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
