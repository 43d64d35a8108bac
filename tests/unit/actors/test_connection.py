"""This process leaves a cluster that it joined to look on, and no other."""

import pytest

from actors import cluster
from actors.cluster import RayConnection
from disagg_train.errors import ClusterError


class _FakeRay:
    def __init__(self) -> None:
        self.is_there = True
        self.is_joined = False

    def is_initialized(self) -> bool:
        return self.is_joined

    def init(self, address: str, **_: object) -> None:
        if not self.is_there:
            raise ConnectionError(f"nothing at {address}")
        self.is_joined = True

    def shutdown(self) -> None:
        self.is_joined = False


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> _FakeRay:
    fake = _FakeRay()
    monkeypatch.setattr(cluster, "ray", fake)
    monkeypatch.setattr(RayConnection, "_open", set())
    monkeypatch.setattr(RayConnection, "_is_passing", False)
    return fake


def test_the_last_to_look_on_leaves_the_cluster(ray: _FakeRay) -> None:
    first, second = (RayConnection("auto", 1, is_passing=True) for _ in range(2))
    first.close()
    assert ray.is_joined
    second.close()
    assert not ray.is_joined


def test_who_looked_on_leaves_a_cluster_that_something_trains_in(ray: _FakeRay) -> None:
    looking = RayConnection("auto", 1, is_passing=True)
    training = RayConnection(None, 4)
    looking.close()
    assert ray.is_joined
    training.close()
    assert not ray.is_joined


def test_a_cluster_that_was_joined_to_train_stays(ray: _FakeRay) -> None:
    training = RayConnection("auto", 4)
    RayConnection("auto", 1, is_passing=True).close()
    training.close()
    assert ray.is_joined


def test_an_address_without_a_cluster_is_named(ray: _FakeRay) -> None:
    ray.is_there = False
    with pytest.raises(ClusterError, match="no Ray cluster at 'auto'.*HOST:PORT"):
        RayConnection("auto", 1)
