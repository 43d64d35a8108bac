"""Every layout trains the same model as one process: ten steps, by ``verify``."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from actors.fitting import fit
from actors.pool import ActorPool
from disagg_train.trainer import Trainer
from tests.parity.jobs import Degrees, small_job

pytestmark = pytest.mark.ray

_STEPS = 10


@dataclass(frozen=True)
class Pair:
    """Two layouts, and what else is special about the job."""

    vision: Degrees
    language: Degrees
    more: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [_label(self.vision), _label(self.language)]
        for name, value in self.more.items():
            words.append(f"{name}_{_label(value)}" if isinstance(value, dict) else f"{name}{value}")
        return "-".join(words)


def _label(degrees: Degrees) -> str:
    return "".join(f"{axis}{'' if size is True else size}" for axis, size in degrees.items())


_SP = {"tp": 2, "sp": True}
_DISJOINT = [
    Pair({"dp": 2}, _SP),
    Pair({"dp": 1}, {"dp": 2}),
    Pair({"dp": 2}, {"dp": 1}),
    Pair({"tp": 2}, {"tp": 2}),
    Pair({"dp": 3}, {"dp": 2}),
    Pair(_SP, _SP),
    Pair({"dp": 2}, {"cp": 2}),
    Pair({"cp": 2}, {"cp": 2}),
    Pair({"cp": 2}, _SP),
    Pair({"pp": 2}, {"cp": 2}),
    Pair({"cp": 2}, {"pp": 2}),
    Pair({"pp": 2}, {"pp": 2, "tp": 2, "sp": True}),
    Pair({"dp": 2}, {"ep": 2, "dp": 2}, {"num_experts": 4}),
    Pair({"tp": 2}, {"ep": 2, "cp": 2}, {"num_experts": 4}),
]
_PADDED = [
    Pair({"dp": 2}, {"dp": 2}, {"packed": False}),
    Pair({"dp": 2}, {"cp": 2, "tp": 2, "sp": True}, {"packed": False}),
    Pair({"cp": 2}, {"pp": 2, "cp": 2}, {"packed": False}),
    Pair({"dp": 1}, {"ep": 2, "dp": 2, "tp": 2, "sp": True}, {"packed": False, "num_experts": 4}),
]
_COLOCATED = [
    Pair({"dp": 4}, {"tp": 2, "dp": 2}, {"window": 3}),
    Pair({"dp": 4}, {"tp": 2, "dp": 2}, {"window": 1}),
    Pair({"tp": 4}, {"dp": 4}, {"window": 3}),
    Pair({"dp": 4}, {"pp": 2, "tp": 2}, {"window": 2}),
    Pair({"pp": 2, "dp": 2}, {"cp": 4}, {"window": 3}),
]
_TWO_ENCODERS = [
    Pair({"dp": 2}, {"tp": 2}, {"audio": {"dp": 1}}),
    Pair({"tp": 2, "dp": 2}, {"pp": 2, "dp": 2}, {"audio": {"pp": 2}, "window": 2}),
]
_MORE_DISJOINT = [
    Pair({"cp": 3}, {"cp": 2, "dp": 2}),
    Pair({"tp": 2}, {"cp": 2, "tp": 2, "sp": True}),
    Pair({"tp": 2, "cp": 2}, {"pp": 2, "cp": 2}, {"num_layers": 4}),
    Pair({"dp": 3}, {"tp": 4, "sp": True}),
    Pair({"tp": 2, "sp": True, "pp": 2}, {"dp": 2, "cp": 2}),
    Pair({"dp": 3, "pp": 1}, {"pp": 2, "tp": 2, "sp": True}),
]
_MORE_COLOCATED = [
    Pair({"cp": 2, "tp": 2}, {"tp": 2, "cp": 2, "sp": True}, {"window": 2}),
    Pair({"dp": 2, "tp": 2}, {"cp": 2, "tp": 2, "sp": True}, {"audio": {"cp": 2}}),
    Pair({"tp": 2, "cp": 2, "dp": 2}, {"tp": 2, "cp": 2, "pp": 2, "sp": True}, {"window": 2}),
    Pair({"dp": 8}, {"tp": 2, "sp": True, "dp": 4, "ep": 4}, {"num_experts": 4}),
]


def _verified(pool: ActorPool, pair: Pair, colocated: bool) -> None:
    job = small_job(pair.vision, pair.language, colocated=colocated, **pair.more)
    parity = Trainer(job).verify(_STEPS, pool)
    assert parity.ok, parity


@pytest.mark.parametrize("pair", _DISJOINT + _PADDED, ids=str)
def test_disjoint_layouts_train_the_same_model(pool: ActorPool, pair: Pair) -> None:
    _verified(pool, pair, colocated=False)


@pytest.mark.parametrize("pair", _COLOCATED, ids=str)
def test_colocated_layouts_train_the_same_model(pool: ActorPool, pair: Pair) -> None:
    _verified(pool, pair, colocated=True)


@pytest.mark.parametrize("pair", _TWO_ENCODERS, ids=str)
def test_vision_on_the_llms_ranks_and_audio_on_its_own_train_the_same_model(
    pool: ActorPool, pair: Pair
) -> None:
    _verified(pool, pair, colocated=True)


@pytest.mark.slow
@pytest.mark.parametrize("pair", _MORE_DISJOINT, ids=str)
def test_more_disjoint_layouts_train_the_same_model(pool: ActorPool, pair: Pair) -> None:
    _verified(pool, pair, colocated=False)


@pytest.mark.slow
@pytest.mark.parametrize("pair", _MORE_COLOCATED, ids=str)
def test_more_colocated_layouts_train_the_same_model(pool: ActorPool, pair: Pair) -> None:
    _verified(pool, pair, colocated=True)


def test_a_job_that_fell_back_to_colocated_trains_the_same_model(pool: ActorPool) -> None:
    wanted = small_job({"dp": 2}, {"tp": 2, "sp": True}).model_copy(
        update={"fallback": "colocated"}
    )
    job, note = fit(wanted, capacity=2)
    assert "colocated" in note
    assert list(job.groups) == ["language"]
    parity = Trainer(job).verify(_STEPS, pool)
    assert parity.ok, parity
