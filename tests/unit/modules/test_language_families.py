"""LLMs of every family, loaded from transformers' checkpoints, compute what transformers does."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from disagg_train.driver.parity import max_relative_gradient
from tests.unit.forked import run_ranks
from tests.unit.modules.family_ranks import (
    FAMILIES,
    LAYOUTS,
    NUM_RANKS,
    Reference,
    Seen,
    Tensors,
    run_families,
)

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Runs:
    """What the ranks saw, and what transformers did."""

    folder: Path
    ranks: Sequence[dict[tuple[str, str], Seen]]

    def seen(self, family: str, layout: str) -> list[Seen]:
        return [rank[family, layout] for rank in self.ranks if (family, layout) in rank]

    def expected(self, family: str) -> Reference:
        found: Reference = pickle.loads((self.folder / f"{family}.expected").read_bytes())
        return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Return what ranks saw that are forked after one slow import."""
    folder = tmp_path_factory.mktemp("families")
    return Runs(folder, run_ranks(run_families, NUM_RANKS, folder))


each_layout = pytest.mark.parametrize(
    ("family", "layout"),
    [(family, layout) for family in FAMILIES for layout in LAYOUTS[family]],
)


@each_layout
def test_logits_are_transformers_s(runs: Runs, family: str, layout: str) -> None:
    expected_TV = runs.expected(family).logits_TV
    found = [s.logits_TV for s in runs.seen(family, layout) if s.logits_TV is not None]
    assert found
    for logits_TV in found:
        difference = np.abs(logits_TV[: len(expected_TV)] - expected_TV).max()
        assert difference / np.abs(expected_TV).max() < TOLERANCE


@each_layout
def test_each_full_tensor_is_gone_when_the_next_is_read(
    runs: Runs, family: str, layout: str
) -> None:
    for seen in runs.seen(family, layout):
        assert seen.bytes_held
        assert not any(seen.bytes_held)


@each_layout
def test_gradients_are_transformers_s(runs: Runs, family: str, layout: str) -> None:
    gradients: Tensors = {}
    for seen in runs.seen(family, layout):
        assert not gradients.keys() & seen.gradients.keys()
        gradients |= seen.gradients
    assert max_relative_gradient(gradients, runs.expected(family).gradients) < TOLERANCE
