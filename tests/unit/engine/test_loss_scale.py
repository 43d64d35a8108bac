from disagg_train.config.job import LossScaleConfig
from disagg_train.engine.loss_scale import LossScale


def test_a_skipped_step_halves_the_scale_and_good_ones_double_it() -> None:
    scale = LossScale(LossScaleConfig(initial=8.0, growth_interval=2))
    seen = []
    for skipped in (True, False, False, False, True, False, False):
        scale.update(skipped)
        seen.append(scale.value)
    assert seen == [4.0, 4.0, 8.0, 8.0, 4.0, 4.0, 8.0]


def test_the_scale_never_becomes_zero() -> None:
    scale = LossScale(LossScaleConfig(initial=1.0))
    for _ in range(5000):
        scale.update(skipped=True)
    assert scale.value > 0.0
