"""The measure of parity: what it forgives and what it does not."""

import numpy as np
import pytest

from disagg_train.driver.parity import Observation, compare, max_relative_gradient, one_process
from tests.parity.jobs import small_job


def _observation(scale: float = 1.0, key_bias: float = 0.0) -> Observation:
    gradients = {"a": np.ones(4) * scale, "key.bias": np.array([key_bias])}
    return Observation([2.0 * scale, 1.0], [3.0, 2.0], gradients, {"a": np.ones(4) * scale})


def test_equal_runs_agree() -> None:
    parity = compare(_observation(), _observation())
    assert parity.ok
    assert parity.max_rel_grad_first_step == parity.max_rel_loss == 0.0


@pytest.mark.parametrize("scale", [1 + 3e-5, 1 - 3e-5])
def test_a_difference_over_the_bar_is_not_ok(scale: float) -> None:
    assert not compare(_observation(scale), _observation()).ok


def test_rounding_in_a_gradient_that_is_truly_zero_is_forgiven() -> None:
    found, reference = _observation(key_bias=1e-9), _observation(key_bias=-1e-9)
    assert compare(found, reference).ok


def test_a_missing_parameter_is_an_error() -> None:
    with pytest.raises(ValueError, match="different parameters: \\['b'\\]"):
        max_relative_gradient({}, {"b": np.ones(1)})


def test_the_reference_is_the_same_training_on_one_rank() -> None:
    job = small_job({"dp": 3}, {"tp": 2, "sp": True}, balance="none")
    alone = one_process(job)
    assert alone.num_ranks == 1
    assert alone.train == job.train
    assert {m.model.num_layers for m in alone.modules.values()} == {2}
