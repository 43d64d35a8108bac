"""What a job file says of training one module: what stays, how fast, and in which precision."""

from typing import Any

import numpy as np
import pytest

from tests.unit.engine.control_ranks import DECAY, LR, NUM_RANKS, Precise, watch_controls
from tests.unit.forked import run_ranks

Runs = list[dict[str, Any]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Return what each rank saw. The ranks are forked after one slow import."""
    return run_ranks(watch_controls, NUM_RANKS, tmp_path_factory.mktemp("controls"))


def changed(runs: Runs, experiment: str) -> set[str]:
    before, after = runs[0][experiment]
    return {name for name in before if before[name].tobytes() != after[name].tobytes()}


def losses(runs: Runs, experiment: str) -> list[float]:
    """Return the losses of all lanes; tp ranks see the same."""
    ranks = [run[experiment].losses for run in runs if experiment in run]
    return [sum(step) for step in zip(*ranks, strict=True)] if "dp" in experiment else ranks[0]


def test_weight_decay_takes_matrices_and_leaves_norms(runs: Runs) -> None:
    before, after = runs[0]["decay alone"]
    for name, weight in before.items():
        shrunk = weight * (1 - LR * DECAY) if weight.ndim > 1 else weight
        assert after[name] == pytest.approx(shrunk, rel=1e-6), name
    assert any(weight.ndim == 1 for weight in before.values())


def test_a_module_may_have_a_learning_rate_of_its_own(runs: Runs) -> None:
    expected, found = runs[0]["job's rate"], runs[0]["own rate"]
    assert all((found[name] == weight).all() for name, weight in expected.items())


def test_weights_that_a_pattern_names_stay_to_the_last_bit(runs: Runs) -> None:
    names = set(runs[0]["frozen"][0])
    moved = changed(runs, "frozen")
    still = {n for n in names if "layers.0." in n or "norm" in n or "embedding" in n}
    assert moved == names - still
    assert moved and still


def test_layers_that_are_computed_again_train_above_a_frozen_embedding(runs: Runs) -> None:
    names = set(runs[0]["frozen and computed again"][0])
    moved = changed(runs, "frozen and computed again")
    assert moved == {name for name in names if "embedding" not in name}


def test_a_pattern_without_a_weight_is_refused_with_the_nearest_names(runs: Runs) -> None:
    error = runs[0]["no such name"]
    assert "modules.language.freeze: 'gpt.head.*' matches none" in error
    assert "layers.0" not in error.partition(";")[0]
    assert "gpt." in error.partition("the nearest are")[2]


@pytest.mark.parametrize("experiment", ["bf16", "bf16 on dp2", "bf16 on tp2", "fp16 on tp2"])
def test_sixteen_bits_train_as_fp32_does_within_a_few_percent(runs: Runs, experiment: str) -> None:
    found, expected = losses(runs, experiment), losses(runs, "fp32")
    assert found == pytest.approx(expected, rel=0.03)
    assert found[-1] < 0.7 * found[0]
    assert found != expected


@pytest.mark.parametrize(
    ("experiment", "dtype"), [("bf16", "bfloat16"), ("fp16 on tp2", "float16")]
)
def test_the_model_computes_in_sixteen_bits_and_the_optimizer_keeps_more(
    runs: Runs, experiment: str, dtype: str
) -> None:
    import torch

    seen: Precise = runs[0][experiment]
    assert seen.dtypes == {f"torch.{dtype}"}
    assert seen.rows_dtype == f"torch.{dtype}"
    for name, master in seen.masters.items():
        rounded = torch.from_numpy(master).to(getattr(torch, dtype)).float().numpy()
        assert master.dtype == np.float32
        assert (master != rounded).any(), name
