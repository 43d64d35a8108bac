"""Experts on several ranks train the model that they train on one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from disagg_train.driver.parity import max_relative_gradient
from tests.unit.forked import run_ranks
from tests.unit.modules.expert_ranks import (
    EXPERTS_PER_TOKEN,
    LAYOUTS,
    MOST_RANKS,
    NUM_EXPERTS,
    Seen,
    Tensors,
    mixture_input,
    train_every_layout,
)

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
Runs = dict[str, list[Seen]]
several_ranks = pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Return what each rank of each layout saw. The ranks are forked after one slow import."""
    ranks = run_ranks(train_every_layout, MOST_RANKS, tmp_path_factory.mktemp("experts"))
    return {name: [rank[name] for rank in ranks if name in rank] for name in LAYOUTS}


def union(parts: Sequence[Tensors]) -> Tensors:
    """Return all ranks' tensors; no tensor may come from two ranks."""
    merged = {name: tensor for part in parts for name, tensor in part.items()}
    assert len(merged) == sum(len(part) for part in parts)
    return merged


def test_every_expert_has_weights_of_its_own(runs: Runs) -> None:
    weights = union([seen.initial for seen in runs["one"]])
    path = "language.gpt.decoder.layers.1.mlp.experts.local_experts.{}.linear_fc1.weight"
    experts = [weights[path.format(number)] for number in range(NUM_EXPERTS)]
    assert len({expert.tobytes() for expert in experts}) == NUM_EXPERTS
    assert path.format(NUM_EXPERTS) not in weights


def mixture(weights: Tensors, rows_TD: NDArray[Any]) -> NDArray[Any]:
    """Mixtral's layer, plainly: the best experts by router, weighted by their softmax."""
    layer = "language.gpt.decoder.layers.0.mlp."
    scores_TE = rows_TD @ weights[f"{layer}router.weight"].T
    out_TD = np.zeros_like(rows_TD)
    for token, (row_D, scores_E) in enumerate(zip(rows_TD, scores_TE, strict=True)):
        best = np.argsort(scores_E)[-EXPERTS_PER_TOKEN:]
        shares = np.exp(scores_E[best]) / np.exp(scores_E[best]).sum()
        for expert, share in zip(best, shares, strict=True):
            path = f"{layer}experts.local_experts.{expert}."
            gate, up = np.split(weights[f"{path}linear_fc1.weight"] @ row_D, 2)
            hidden = gate / (1 + np.exp(-gate)) * up
            out_TD[token] += share * (weights[f"{path}linear_fc2.weight"] @ hidden)
    return out_TD


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_token_gets_the_mixture_of_its_best_experts(runs: Runs, layout: str) -> None:
    (one,) = runs["one"]
    expected = mixture(one.initial, mixture_input())
    for seen in runs[layout]:
        assert seen.mixed == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)


@several_ranks
def test_a_seed_draws_the_same_weights_on_any_layout(runs: Runs, layout: str) -> None:
    found, expected = (union([seen.initial for seen in runs[name]]) for name in (layout, "one"))
    assert found.keys() == expected.keys()
    assert all((found[name] == tensor).all() for name, tensor in expected.items())


@several_ranks
def test_losses_and_norms_equal_one_process(runs: Runs, layout: str) -> None:
    (one,) = runs["one"]
    losses = [sum(step) for step in zip(*(seen.losses for seen in runs[layout]), strict=True)]
    assert losses == pytest.approx(one.losses, rel=TOLERANCE)
    for seen in runs[layout]:
        assert seen.norms == pytest.approx(one.norms, rel=TOLERANCE)


@several_ranks
@pytest.mark.parametrize("what", ["gradients", "weights"])
def test_every_tensor_equals_one_process(runs: Runs, layout: str, what: str) -> None:
    found, expected = (union([getattr(s, what) for s in runs[name]]) for name in (layout, "one"))
    assert max_relative_gradient(found, expected) <= TOLERANCE
