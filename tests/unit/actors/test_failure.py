"""What Ray says of a death is told in one line; errors of a rank keep what they mean."""

import pytest
import torch.distributed as dist
from ray.exceptions import ActorDiedError, RayActorError

from actors.failure import cause_of, death_of, last_line
from disagg_train.errors import BoundaryError, Cause

OUT_OF_MEMORY = """The actor died unexpectedly before finishing this task.
\tclass_name: RankActor
\tpid: 15258
Memory on the node was 95.1GB / 96.0GB (0.99), so Ray killed this worker.
Top 10 memory users:
1 15258 90.0 ray::RankActor.train"""

KILLED = """The actor died unexpectedly before finishing this task.
\tclass_name: RankActor
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit \
detail: Worker unexpectedly exits with a connection error code 2. End of file. Some common causes \
include: (1) the process was killed by the OOM killer due to high memory usage."""


def test_a_death_is_told_by_its_reason() -> None:
    error = RayActorError("1" * 32, OUT_OF_MEMORY)
    assert death_of(error).startswith("Memory on the node was 95.1GB")


def test_what_ray_guesses_about_deaths_in_general_is_left_out() -> None:
    error = RayActorError("1" * 32, KILLED)
    assert death_of(error).endswith("connection error code 2. End of file.")


def test_a_death_without_a_reason_is_told_as_ray_tells_it() -> None:
    assert death_of(ActorDiedError()) == ActorDiedError.BASE_ERROR_MSG


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (BoundaryError("vision->language: not done in 5 s"), "peer"),
        (RuntimeError("[gloo] Connection closed by peer [192.0.2.2]:1"), "collective"),
        (dist.DistBackendError("NCCL error: remote process exited"), "collective"),
        (RuntimeError("CUDA out of memory"), "raised"),
    ],
)
def test_a_rank_that_lost_a_peer_is_told_from_one_that_failed(
    error: BaseException, cause: Cause
) -> None:
    assert cause_of(error) == cause


def test_the_last_line_of_a_traceback_is_the_error() -> None:
    assert last_line("Traceback:\n  File x\nValueError: nan\n\n") == "ValueError: nan"
