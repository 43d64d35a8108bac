"""A run is resumed by a job that trains the same; its layout may be another."""

import pytest

from disagg_train.checkpoint.same_run import check_same_run
from disagg_train.config.load import load_job
from disagg_train.errors import ConfigError
from tests.parity.jobs import small_job


def _saved() -> dict[str, object]:
    return small_job({"dp": 2}, {"tp": 2, "sp": True}).model_dump(mode="json")


def test_layout_steps_and_rates_may_change() -> None:
    other = small_job({"tp": 2}, {"dp": 3})
    check_same_run(_saved(), load_job(other, ["train.steps=99", "train.optimizer.lr=0.5"]))


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("seed=5", "seed"),
        ("train.global_batch=7", "train.global_batch"),
        ("modules.language.model.num_layers=4", "modules.language.model"),
        ("modules.vision.freeze=true", "modules.vision.freeze"),
    ],
)
def test_what_decides_the_training_may_not(override: str, field: str) -> None:
    job = load_job(small_job({"dp": 2}, {"tp": 2, "sp": True}), [override])
    with pytest.raises(ConfigError, match=f"another run: {field} differ"):
        check_same_run(_saved(), job)
