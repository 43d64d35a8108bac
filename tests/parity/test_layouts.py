"""Every layout trains the same model as one process: ten steps, by ``verify``."""

import pytest

from actors.cluster import fit
from actors.pool import ActorPool
from disagg_train.trainer import Trainer
from tests.parity.jobs import Degrees, small_job

pytestmark = pytest.mark.ray

_STEPS = 10

_DISJOINT = [
    ({"dp": 2}, {"tp": 2, "sp": True}),
    ({"dp": 1}, {"dp": 2}),
    ({"dp": 2}, {"dp": 1}),
    ({"tp": 2}, {"tp": 2}),
    ({"dp": 3}, {"dp": 2}),
    ({"tp": 2, "sp": True}, {"tp": 2, "sp": True}),
]
_COLOCATED = [
    ({"dp": 4}, {"tp": 2, "dp": 2}, 3),
    ({"dp": 4}, {"tp": 2, "dp": 2}, 1),
    ({"tp": 4}, {"dp": 4}, 3),
]


def _label(degrees: Degrees) -> str:
    return "".join(f"{axis}{'' if size is True else size}" for axis, size in degrees.items())


@pytest.mark.parametrize(
    ("vision", "language"), _DISJOINT, ids=[f"{_label(v)}-{_label(g)}" for v, g in _DISJOINT]
)
def test_disjoint_layouts_train_the_same_model(
    pool: ActorPool, vision: Degrees, language: Degrees
) -> None:
    parity = Trainer(small_job(vision, language)).verify(_STEPS, pool)
    assert parity.ok, parity


@pytest.mark.parametrize(
    ("vision", "language", "window"),
    _COLOCATED,
    ids=[f"{_label(v)}-{_label(g)}-window{w}" for v, g, w in _COLOCATED],
)
def test_colocated_layouts_train_the_same_model(
    pool: ActorPool, vision: Degrees, language: Degrees, window: int
) -> None:
    job = small_job(vision, language, colocated=True, window=window)
    parity = Trainer(job).verify(_STEPS, pool)
    assert parity.ok, parity


def test_a_job_that_fell_back_to_colocated_trains_the_same_model(pool: ActorPool) -> None:
    wanted = small_job({"dp": 2}, {"tp": 2, "sp": True}).model_copy(
        update={"fallback": "colocated"}
    )
    job, note = fit(wanted, capacity=2)
    assert "colocated" in note
    assert list(job.groups) == ["language"]
    parity = Trainer(job).verify(_STEPS, pool)
    assert parity.ok, parity
