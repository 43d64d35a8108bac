"""Low-rank additions train the same on every layout, and merge into the matrices."""

from collections.abc import Sequence

import numpy as np
import pytest

from disagg_train.config.modules import LoraConfig
from disagg_train.driver.parity import max_relative_gradient
from disagg_train.modules.lora import merged
from tests.unit.forked import run_ranks
from tests.unit.modules.lora_ranks import (
    LAYOUTS,
    MIXTURES,
    NUM_RANKS,
    Seen,
    Tensors,
    fingerprint,
    train_every_layout,
)

TOLERANCE = 1e-5
Runs = dict[str, list[Seen]]

every_layout = pytest.mark.parametrize(
    ("layout", "one"),
    [(name, "one") for name in LAYOUTS if name != "one"] + [("ep2", "one with experts")],
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Return what each rank of each layout saw. The ranks are forked after one slow import."""
    ranks = run_ranks(train_every_layout, NUM_RANKS, tmp_path_factory.mktemp("lora"))
    return {name: [rank[name] for rank in ranks if name in rank] for name in (*LAYOUTS, *MIXTURES)}


def union(parts: Sequence[Tensors]) -> Tensors:
    return {name: tensor for part in parts for name, tensor in part.items()}


def test_merging_adds_the_product_and_leaves_the_rest() -> None:
    weights = {
        "m.linear.weight": np.zeros((2, 3)),
        "m.linear.lora_A": np.array([[1.0, 2.0, 3.0]]),
        "m.linear.lora_B": np.array([[1.0], [10.0]]),
        "m.norm.weight": np.ones(3),
    }
    found = merged(weights, LoraConfig(rank=1, alpha=2.0))
    assert found["m.linear.weight"].tolist() == [[2.0, 4.0, 6.0], [20.0, 40.0, 60.0]]
    assert found["m.norm.weight"] is weights["m.norm.weight"]
    assert set(found) == {"m.linear.weight", "m.norm.weight"}


def test_additions_have_names_of_their_own_and_begin_as_nothing(runs: Runs) -> None:
    (one,) = runs["one"]
    layer = "language.gpt.decoder.layers.1"
    for linear in ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1"):
        path = f"{layer}.{linear}"
        assert {f"{path}.weight", f"{path}.lora_A", f"{path}.lora_B"} <= set(one.initial)
        assert one.initial[f"{path}.lora_A"].any() and not one.initial[f"{path}.lora_B"].any()


def test_only_additions_train(runs: Runs) -> None:
    (one,) = runs["one"]
    assert all(name.endswith(("lora_A", "lora_B")) for name in one.gradients)
    assert len(one.gradients) == 2 * 4 * 2  # layers, linears, A and B
    assert all(gradient.any() for gradient in one.gradients.values())


@pytest.mark.parametrize("layout", [*LAYOUTS, *MIXTURES])
def test_the_base_stays_to_the_last_bit(runs: Runs, layout: str) -> None:
    seen = runs[layout]
    before = fingerprint(union([rank.initial for rank in seen]))
    after = fingerprint(union([rank.weights for rank in seen]))
    changed = {name for name, tensor in before.items() if tensor != after[name]}
    assert changed == {name for name in before if name.endswith(("lora_A", "lora_B"))}


def test_experts_get_no_additions(runs: Runs) -> None:
    (one,) = runs["one with experts"]
    trained = [name for name in one.gradients if ".experts." in name]
    assert not trained and any(".linear_proj.lora_A" in name for name in one.gradients)


@every_layout
def test_losses_and_norms_equal_one_process(runs: Runs, layout: str, one: str) -> None:
    (alone,) = runs[one]
    losses = [sum(step) for step in zip(*(seen.losses for seen in runs[layout]), strict=True)]
    assert losses == pytest.approx(alone.losses, rel=TOLERANCE)
    for seen in runs[layout]:
        assert seen.norms == pytest.approx(alone.norms, rel=TOLERANCE)


@every_layout
@pytest.mark.parametrize("what", ["gradients", "weights"])
def test_every_tensor_equals_one_process(runs: Runs, layout: str, one: str, what: str) -> None:
    found, expected = (union([getattr(s, what) for s in runs[name]]) for name in (layout, one))
    assert max_relative_gradient(found, expected) <= TOLERANCE


def test_merged_weights_give_the_same_loss(runs: Runs) -> None:
    (one,) = runs["one"]
    with_additions, with_merged_weights = one.merged_losses
    assert with_merged_weights == pytest.approx(with_additions, rel=1e-6)
    assert with_additions != pytest.approx(one.losses[0], rel=1e-3)
