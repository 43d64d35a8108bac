"""The client of Ray's job server: where it goes, what it makes of errors, how it follows a log."""

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ServerDisconnectedError
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.exceptions import AuthenticationError

from actors import jobs
from actors.jobs import RayJobs, server_address
from disagg_train.errors import ConfigError, SubmissionError
from disagg_train.submission.request import JobRequest

_ADDRESS = "http://head:8265"


class _FakeClient:
    """Answers as Ray's does; of a log, each connection yields some pieces, then may break."""

    connections: Sequence[tuple[list[str], Exception | None]] = ()
    statuses: Sequence[str] = ("SUCCEEDED",)
    error: Exception | None = None

    headers: Mapping[str, str] = {}
    submitted: list[str] = []

    def __init__(self, address: str, headers: Mapping[str, str]) -> None:
        type(self).headers, self.submitted = headers, type(self).submitted
        self._connections, self._statuses = list(self.connections), list(self.statuses)
        if self.error is not None:
            raise self.error

    def get_job_info(self, job_id: str) -> JobDetails:
        status = self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]
        return JobDetails(
            type="SUBMISSION",
            submission_id=job_id,
            status=status,
            entrypoint="x",
            start_time=1500,
            runtime_env={"env_vars": {"NAME": "value"}},
        )

    def get_job_logs(self, job_id: str) -> str:
        return "one\ntwo\nthree\nlast"

    def submit_job(self, submission_id: str, **_: Any) -> None:
        self.submitted.append(submission_id)
        if len(self.submitted) < 3:
            raise RuntimeError("status code 500: No available agent to submit job")

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        pieces, error = self._connections.pop(0)
        for piece in pieces:
            yield piece
        if error is not None:
            raise error


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> type[_FakeClient]:
    class Client(_FakeClient):
        pass

    monkeypatch.setattr(jobs, "_Client", Client)
    monkeypatch.setattr(jobs, "_RETRY_S", 0.0)
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")  # and taken back, whatever the client sets
        monkeypatch.delenv(name)
    return Client


@pytest.mark.parametrize(
    ("given", "shell", "found"),
    [
        ("http://head:8265/", {"RAY_ADDRESS": "http://other:1"}, _ADDRESS),
        ("head:8265", {}, _ADDRESS),
        ("https://ray.example.com", {}, "https://ray.example.com"),
        (None, {"RAY_API_SERVER_ADDRESS": _ADDRESS, "RAY_ADDRESS": "http://other:1"}, _ADDRESS),
        (None, {"RAY_ADDRESS": _ADDRESS}, _ADDRESS),
    ],
)
def test_the_given_address_goes_before_the_shells(
    given: str | None, shell: dict[str, str], found: str
) -> None:
    assert server_address(given, shell) == found


@pytest.mark.parametrize("given", [None, "auto", "ray://head:10001", "http://me:word@head:8265"])
def test_what_is_no_address_of_a_job_server_is_refused(given: str | None) -> None:
    with pytest.raises(ConfigError, match="--address http://HEAD:8265") as caught:
        server_address(given, {})
    assert "word" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("x"), "no job server answers at http://head:8265.*dashboard"),
        (TimeoutError("x"), "no job server answers"),
        (
            AuthenticationError("Authentication required: Missing authentication token"),
            "no token for http://head:8265, which wants one: export RAY_AUTH_TOKEN_PATH",
        ),
        (
            AuthenticationError("Authentication failed: Invalid authentication token"),
            "refuses the token of RAY_AUTH_TOKEN; use the one",
        ),
        (RuntimeError("Request failed with status code 404: Job mine does not exist"), "no job"),
        (RuntimeError("Job with submission_id mine already exists."), "another --submission-id"),
        (RuntimeError("out of memory"), "http://head:8265: out of memory"),
    ],
)
def test_errors_of_ray_say_what_to_do(
    error: Exception, said: str, client: type[_FakeClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "quite-private")
    client.error = error
    with pytest.raises(SubmissionError, match=said) as caught:
        RayJobs(_ADDRESS)
    assert "quite-private" not in str(caught.value)


def test_a_jobs_state_has_the_names_of_its_variables_alone(client: type[_FakeClient]) -> None:
    state = RayJobs(_ADDRESS).job("mine")
    assert (state.job_id, state.status, state.start_s) == ("mine", "SUCCEEDED", 1.5)
    assert "value" not in repr(state)
    assert state.variables == ["NAME"]


def _followed(client: type[_FakeClient], *connections: Any, statuses: Sequence[str]) -> list[str]:
    client.connections, client.statuses = connections, statuses
    return list(RayJobs(_ADDRESS).follow("mine"))


def test_a_lost_connection_is_made_anew_and_nothing_is_told_twice(
    client: type[_FakeClient],
) -> None:
    found = _followed(
        client,
        (["one\n", "tw"], RuntimeError("closed unexpectedly")),
        ([], ServerDisconnectedError()),
        (["one\ntwo\n"], None),
        (["one\ntwo\nthr", "ee\nlast"], None),
        statuses=["RUNNING", "SUCCEEDED"],
    )
    assert "".join(found) == "one\ntwo\nthree\nlast"


def test_what_a_connection_left_out_is_made_up_for_at_the_end(client: type[_FakeClient]) -> None:
    assert "".join(_followed(client, (["one\n"], None), statuses=["FAILED"])).endswith("last")


def test_a_server_that_is_lost_for_long_is_told(
    client: type[_FakeClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_PATIENCE_S", -1.0)
    with pytest.raises(SubmissionError, match="lost http://head:8265.*job goes on"):
        _followed(client, ([], ConnectionError("gone")), statuses=["RUNNING"])


def test_a_token_that_is_named_is_sent(
    client: type[_FakeClient], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(ConfigError, match="RAY_AUTH_TOKEN_PATH: cannot read"):
        RayJobs(_ADDRESS)
    (tmp_path / "token").write_text("of-a-file\n")
    RayJobs(_ADDRESS)
    assert client.headers == {"Authorization": "Bearer of-a-file"}
    monkeypatch.setenv("RAY_AUTH_TOKEN", "its-own")
    RayJobs(_ADDRESS)
    assert client.headers == {"Authorization": "Bearer its-own"}
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    RayJobs(_ADDRESS)
    assert client.headers == {}


def test_a_head_that_only_just_started_is_asked_again(
    client: type[_FakeClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    client.submitted = []
    request = JobRequest("mine", "x", {}, {})
    RayJobs(_ADDRESS).submit(request, "job.zip")
    assert client.submitted == ["mine"] * 3
    client.submitted = []
    monkeypatch.setattr(jobs, "_STARTING_S", -1.0)
    with pytest.raises(SubmissionError, match="No available agent"):
        RayJobs(_ADDRESS).submit(request, "job.zip")
