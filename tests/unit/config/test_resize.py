"""A group gets other ranks: data parallelism follows, nothing else changes."""

import pytest

from disagg_train.config.resize import resized, shrunk
from disagg_train.errors import ConfigError
from tests.parity.jobs import small_job


def test_dp_follows_the_ranks() -> None:
    job = small_job({"dp": 2}, {"tp": 2, "dp": 2, "sp": True})
    larger = resized(job, "language", 6)
    assert larger.modules["language"].parallel.dp == 3
    assert larger.groups["language"].ranks == 6
    assert larger.modules["vision"] == job.modules["vision"]
    assert larger.train == job.train
    assert resized(larger, "language", 4) == job


def test_other_degrees_must_divide_the_ranks() -> None:
    job = small_job({"dp": 2}, {"tp": 2, "dp": 2, "sp": True})
    with pytest.raises(ConfigError, match="use a multiple of 2"):
        resized(job, "language", 3)
    with pytest.raises(ConfigError, match="no group 'audio'"):
        resized(job, "audio", 3)


def test_a_group_shrinks_to_what_its_degrees_allow() -> None:
    job = small_job({"dp": 2}, {"tp": 2, "dp": 2, "sp": True})
    smaller = shrunk(job, "language", 3)
    assert smaller is not None
    assert smaller.groups["language"].ranks == 2
    assert shrunk(job, "language", 1) is None
