"""What several test folders share: one pool of rank actors, since Megatron imports slowly."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from disagg_train.process_end import QuickEnd

if TYPE_CHECKING:
    from actors.pool import ActorPool

_MOST_RANKS = 8
_FREE = 4  # for the tests that start actors of their own

_end = QuickEnd()


def pytest_sessionfinish(exitstatus: int) -> None:
    _end.status = int(exitstatus)


@pytest.fixture(scope="session")
def pool() -> "Iterator[ActorPool]":
    from actors.cluster import RayConnection
    from actors.pool import ActorPool

    connection = RayConnection(None, num_cpus=_MOST_RANKS + _FREE)
    pool = ActorPool(_MOST_RANKS)
    yield pool
    pool.close()
    connection.close()
