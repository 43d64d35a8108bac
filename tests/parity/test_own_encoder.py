"""Encoders of one's own train the same model on any layout that they may have."""

from typing import Any

import pytest

from actors.pool import ActorPool
from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.trainer import Trainer
from tests.parity.jobs import Degrees, small_job

pytestmark = pytest.mark.ray

_STEPS = 4
_EXAMPLE = "examples.own_encoder.encoder:StripEncoder"
_SPLIT = "tests.parity.encoders:SplitEncoder"
_SP = {"tp": 2, "sp": True}


def _job(kind: str, vision: Degrees, language: Degrees, **more: Any) -> JobConfig:
    job = small_job(vision, language, colocated=more.pop("colocated", False)).model_dump()
    module = job["modules"]["vision"]
    kept = {field: module[field] for field in ("group", "parallel")}
    options = {"width": 24} | more.pop("options", {})
    vision_module = kept | {"kind": kind, "options": options, "projector": {"merge": 2}} | more
    job["modules"] = {"vision": vision_module, "language": job["modules"]["language"]}
    return load_job(job)


def _verified(pool: ActorPool, job: JobConfig) -> None:
    parity = Trainer(job).verify(_STEPS, pool)
    assert parity.ok, parity
    assert parity.max_rel_weight < 1e-3, parity


def test_replicas_of_a_plain_module_feed_an_llm_on_other_ranks(pool: ActorPool) -> None:
    _verified(pool, _job(_EXAMPLE, {"dp": 2}, _SP))


@pytest.mark.slow
def test_a_plain_module_shares_ranks_with_the_llm(pool: ActorPool) -> None:
    _verified(pool, _job(_EXAMPLE, {"dp": 2}, _SP, colocated=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "vision",
    [{"tp": 2}, {"pp": 2}, {"cp": 2}, {"tp": 2, "pp": 2}, {"cp": 2, "tp": 2}, {"cp": 2, "pp": 2}],
    ids=str,
)
def test_a_module_is_cut_in_the_ways_that_it_declares(pool: ActorPool, vision: Degrees) -> None:
    _verified(pool, _job(_SPLIT, vision, {"dp": 2}))


@pytest.mark.slow
def test_its_activations_can_be_computed_again(pool: ActorPool) -> None:
    _verified(pool, _job(_EXAMPLE, {"dp": 2}, {}, recompute="full"))


@pytest.mark.slow
def test_a_frozen_module_keeps_its_weights_and_its_projector_trains(pool: ActorPool) -> None:
    frozen = _job(_EXAMPLE, {"dp": 2}, {}, freeze=True, projector={"merge": 2, "freeze": False})
    _verified(pool, frozen)
