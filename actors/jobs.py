"""A cluster's job server, as its clients see it: submit a job, look at it, follow it, stop it."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from disagg_train.config.secret_values import is_issued_secret
from disagg_train.errors import ConfigError, SubmissionError
from disagg_train.submission.request import JobRequest
from disagg_train.submission.state import JobState

_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_MODE = "RAY_AUTH_MODE"
_DEFAULT_TOKEN = "~/.ray/auth_token"
_TIMEOUTS_S = (10.0, 120.0)
"""To reach the server, and to have its answer."""
_TALKATIVE = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
_IDLE_S = 15.0
_RETRY_S = 1.0
_PATIENCE_S, _STARTING_S = 90.0, 60.0
_STARTING = "No available agent"
"""What a head says that answers, but cannot start jobs yet."""


class _Client(JobSubmissionClient):
    """Ray's client, whose requests wait for ever."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=_TIMEOUTS_S, **options)


def server_address(given: str | None, shell: Mapping[str, str]) -> str:
    """Return the address of a job server as a URL.

    Args:
        given: by the user, who goes before the shell's variables.
        shell: environment of this process.

    Raises:
        ConfigError: there is none, or it is of something else.
    """
    found = given or next(filter(None, map(shell.get, _ADDRESS_VARIABLES)), None)
    way_out = "give that of the cluster's dashboard: --address http://HEAD:8265"
    if found is None:
        raise ConfigError(f"no address of a cluster; {way_out}, or export RAY_API_SERVER_ADDRESS")
    if is_issued_secret(found):
        raise ConfigError(f"--address holds a password; {way_out}, and a token by RAY_AUTH_TOKEN")
    url = found if "://" in found else f"http://{found}"
    if not url.startswith(("http://", "https://")) or found == "auto":
        raise ConfigError(f"{found!r} is no address of a job server; {way_out}")
    return url.rstrip("/")


class RayJobs:
    """A job server of Ray.

    Authentication is Ray's: ``RAY_AUTH_MODE=token`` with the token in ``RAY_AUTH_TOKEN``, in the
    file ``RAY_AUTH_TOKEN_PATH``, or in ``~/.ray/auth_token``. The mode may be left out where one
    of the two variables is set.

    Args:
        address: of the dashboard; None takes it from the environment, as Ray does.

    Raises:
        ConfigError: there is no address.
        SubmissionError: nothing answers there, or it refuses the token.
    """

    def __init__(self, address: str | None) -> None:
        self.address = server_address(address, os.environ)
        headers = _authorization(os.environ)
        # Ray lets this variable, and another one, go before the address that it is given.
        os.environ[_ADDRESS_VARIABLES[0]] = self.address
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        with self._telling():
            self._client = _Client(self.address, headers=headers)

    def submit(self, request: JobRequest, archive: str) -> None:
        """Upload an archive and start a job in it; returns once Ray has noted it.

        Waits for a head that has only just started.

        Raises:
            SubmissionError: there is such a job, or the server refuses it.
        """
        until_s = time.monotonic() + _STARTING_S
        while True:
            try:
                self._submit(request, archive)
                return
            except SubmissionError as error:
                if _STARTING not in str(error) or time.monotonic() > until_s:
                    raise
            time.sleep(_RETRY_S)

    def _submit(self, request: JobRequest, archive: str) -> None:
        environment = {"working_dir": archive, "env_vars": dict(request.environment)}
        with self._telling(request.job_id):
            self._client.submit_job(
                entrypoint=request.entrypoint,
                submission_id=request.job_id,
                runtime_env=environment,
                metadata=dict(request.metadata),
            )

    def job(self, job_id: str) -> JobState:
        """Return what is known of a job.

        Raises:
            SubmissionError: there is no such job.
        """
        with self._telling(job_id):
            return _state(self._client.get_job_info(job_id))

    def jobs(self) -> list[JobState]:
        """Return all submitted jobs."""
        with self._telling():
            found = self._client.list_jobs()
        return [_state(each) for each in found if each.submission_id]

    def stop(self, job_id: str) -> bool:
        """Have a job's driver told to end; returns before it does, False where it has none yet."""
        with self._telling(job_id):
            return bool(self._client.stop_job(job_id))

    def log(self, job_id: str) -> str:
        """Return what a job has printed so far."""
        with self._telling(job_id):
            return str(self._client.get_job_logs(job_id))

    def follow(self, job_id: str) -> Iterator[str]:
        """Yield what a job has printed and prints, to its end; a lost connection is made anew.

        Raises:
            SubmissionError: there is no such job, or the server is not heard of for long.
        """
        seen, heard_s = 0, time.monotonic()
        while True:
            at = 0
            try:
                for text in self._tail(job_id):
                    heard_s = time.monotonic()
                    if new := text[max(seen - at, 0) :]:
                        yield new
                    at += len(text)
                    seen = max(seen, at)
                if self.job(job_id).is_over:
                    yield from filter(None, [self.log(job_id)[seen:]])
                    return
            except UnknownJobError:
                raise
            except (SubmissionError, OSError, RuntimeError, ClientError) as error:
                if time.monotonic() - heard_s > _PATIENCE_S:
                    raise SubmissionError(
                        f"lost {self.address}, and with it the log of {job_id}: {error}. As long "
                        f"as the cluster's head lives, the job goes on"
                    ) from None
            time.sleep(_RETRY_S)

    def _tail(self, job_id: str) -> Iterator[str]:
        """Yield a log from its begin, and nothing now and then, to the end of one connection."""
        with asyncio.Runner() as runner:
            pieces = self._client.tail_job_logs(job_id)
            while True:
                piece = runner.get_loop().create_task(_next(pieces))
                while not runner.run(_is_done_soon(piece)):
                    if self.job(job_id).is_over:
                        return
                    yield ""
                if (text := piece.result()) is None:
                    return
                yield text

    @contextlib.contextmanager
    def _telling(self, job_id: str = "") -> Iterator[None]:
        """Turn what Ray's client raises into errors that say what to do."""
        try:
            yield
        except AuthenticationError as error:
            raise SubmissionError(self._refused(str(error))) from None
        except OSError as error:  # those of requests are, too
            raise SubmissionError(
                f"no job server answers at {self.address} ({type(error).__name__}); that is where "
                f"the dashboard of the cluster's head listens, on port 8265 by default, and on "
                f"other machines' behalf only with `ray start --head --dashboard-host 0.0.0.0`"
            ) from None
        except (RuntimeError, ValueError) as error:
            raise _refusal(str(error), job_id, self.address) from None

    def _refused(self, said: str) -> str:
        if "Invalid authentication token" not in said:
            return (
                f"no token for {self.address}, which wants one: export RAY_AUTH_TOKEN_PATH=FILE, "
                f"a file with the token that the cluster was started with (or RAY_AUTH_TOKEN; or "
                f"{_MODE}=token for the one in {_DEFAULT_TOKEN})"
            )
        sources = [name for name in _TOKEN_VARIABLES if name in os.environ]
        source = sources[0] if sources else _DEFAULT_TOKEN
        return (
            f"{self.address} refuses the token of {source}; use the one that the cluster was "
            f"started with"
        )


def _authorization(shell: Mapping[str, str]) -> dict[str, str]:
    """Return the header with the token that the shell names, if it names one.

    Ray's own client asks for the mode, too, and reads it once, when Ray is imported.

    Raises:
        ConfigError: the file that is named is not there; Ray would go without.
    """
    token, file = shell.get("RAY_AUTH_TOKEN"), shell.get("RAY_AUTH_TOKEN_PATH")
    if shell.get(_MODE, "token").lower() != "token":
        return {}
    if not token and file:
        try:
            token = Path(file).read_text().strip()
        except OSError as error:
            raise ConfigError(f"RAY_AUTH_TOKEN_PATH: cannot read {file}: {error}") from None
    return {"Authorization": f"Bearer {token}"} if token else {}


class UnknownJobError(SubmissionError):
    """There is no job of that id."""


def _refusal(said: str, job_id: str, address: str) -> SubmissionError:
    if "does not exist" in said:
        return UnknownJobError(
            f"there is no job {job_id} at {address}; `disagg-train status --address {address}` "
            f"lists those that there are"
        )
    if "already exists" in said:
        return SubmissionError(
            f"there is a job {job_id} at {address} already; give another --submission-id, or none"
        )
    return SubmissionError(f"{address}: {said}")


def _state(details: Any) -> JobState:
    environment = (details.runtime_env or {}).get("env_vars") or {}
    return JobState(
        job_id=details.submission_id,
        status=details.status.value,
        message=details.message or "",
        error_type=details.error_type or "",
        exit_code=details.driver_exit_code,
        start_s=_seconds(details.start_time),
        end_s=_seconds(details.end_time),
        metadata=details.metadata or {},
        variables=list(environment),
    )


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000.0


async def _next(pieces: AsyncIterator[str]) -> str | None:
    return await anext(pieces, None)


async def _is_done_soon(piece: "asyncio.Task[str | None]") -> bool:
    done, _ = await asyncio.wait({piece}, timeout=_IDLE_S)
    return bool(done)
