"""Warm-up, then a cosine down to a fraction of the highest rate."""

import pytest

from disagg_train.config.job import OptimizerConfig, TrainConfig
from disagg_train.driver.learning_rate import learning_rate

_TRAIN = TrainConfig(
    steps=101,
    global_batch=1,
    optimizer=OptimizerConfig(lr=1.0, warmup_steps=10, min_lr_fraction=0.1),
)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.1), (9, 1.0), (10, 1.0), (55, 0.55), (100, 0.1)])
def test_known_points(step: int, rate: float) -> None:
    assert learning_rate(_TRAIN, step) == pytest.approx(rate)


def test_it_never_rises_after_the_warm_up() -> None:
    rates = [learning_rate(_TRAIN, step) for step in range(10, 101)]
    assert rates == sorted(rates, reverse=True)
