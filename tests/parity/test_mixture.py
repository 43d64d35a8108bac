"""Photos, plain chat and recordings in one job, two encoders on groups of their own."""

from pathlib import Path

import pytest

from actors.pool import ActorPool
from disagg_train.trainer import Trainer
from tests.parity.mixture import mixture_job, save_mixture

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    save_mixture(folder)
    return folder


def test_a_mixture_of_photos_chat_and_sound_trains_as_in_one_process(
    pool: ActorPool, folder: Path
) -> None:
    trainer = Trainer(mixture_job(folder))
    parity = trainer.verify(4, pool)
    assert parity.ok, parity


def test_its_first_batches_have_every_kind_of_sample(folder: Path) -> None:
    trainer = Trainer(mixture_job(folder))
    kinds = {frozenset(size.slots) for size in trainer.source.sizes("train")}
    assert kinds == {frozenset({"vision"}), frozenset(), frozenset({"audio"})}
