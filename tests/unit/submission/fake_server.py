"""A job server in memory: what a job says and how it ends is told beforehand."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from zipfile import ZipFile

from disagg_train.submission.request import JobRequest
from disagg_train.submission.state import JobState

ADDRESS = "http://head:8265"


class FakeServer:
    """Keeps what it was asked; every look at a running job takes it to its next state."""

    address = ADDRESS

    def __init__(self, pieces: Sequence[str] = (), states: Sequence[JobState] = ()) -> None:
        self.pieces, self.states = list(pieces), list(states)
        self.requests: list[JobRequest] = []
        self.archived: dict[str, bytes] = {}
        self.stopped: list[str] = []
        self.interrupts_after: int | None = None
        self.deaf_to = 0

    def submit(self, request: JobRequest, archive: str) -> None:
        self.requests.append(request)
        with ZipFile(archive) as archived:
            self.archived = {name: archived.read(name) for name in archived.namelist()}
        self.states = [
            replace(state, job_id=request.job_id, metadata=request.metadata)
            for state in self.states
        ]

    def job(self, job_id: str) -> JobState:
        state = self.states[0]
        assert state.job_id == job_id
        if len(self.states) > 1:
            self.states.pop(0)
        return state

    def jobs(self) -> list[JobState]:
        return self.states

    def stop(self, job_id: str) -> bool:
        self.stopped.append(job_id)
        return len(self.stopped) > self.deaf_to

    def log(self, job_id: str) -> str:
        del job_id
        return "".join(self.pieces)

    def follow(self, job_id: str) -> Iterator[str]:
        del job_id
        for number, piece in enumerate(self.pieces):
            if number == self.interrupts_after:
                raise KeyboardInterrupt
            yield piece
