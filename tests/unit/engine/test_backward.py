"""However a stage runs its backward, the gradients are the same; memory is what differs."""

import numpy as np
import pytest

from disagg_train.driver.parity import max_relative_gradient
from tests.unit.engine.backward_ranks import LAYOUTS, NUM_RANKS, WAYS, Seen, run_every_layout
from tests.unit.forked import run_ranks

pytestmark = pytest.mark.slow

TOLERANCE = 1e-6
UNEVEN = {"gpt ep2", "gpt frozen", "vit projector only"}
"""Layouts whose microbatches take unequal memory, or whose first stage takes none."""
Runs = dict[tuple[str, str], list[Seen]]
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
even_layouts = pytest.mark.parametrize("layout", [n for n in LAYOUTS if n not in UNEVEN])
other_ways = pytest.mark.parametrize("way", [way for way in WAYS if way != "plain"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Return what each rank of each layout saw. The ranks are forked after one slow import."""
    ranks = run_ranks(run_every_layout, NUM_RANKS, tmp_path_factory.mktemp("backward"))
    return {
        (layout, way): [rank[layout, way] for rank in ranks if (layout, way) in rank]
        for layout in LAYOUTS
        for way in WAYS
    }


@every_layout
@other_ways
def test_gradients_equal_those_of_the_plain_backward(runs: Runs, layout: str, way: str) -> None:
    for found, plain in zip(runs[layout, way], runs[layout, "plain"], strict=True):
        assert max_relative_gradient(found.gradients, plain.gradients) <= TOLERANCE


@every_layout
@other_ways
def test_rows_and_their_gradients_equal_the_plain_ones(runs: Runs, layout: str, way: str) -> None:
    for found, plain in zip(runs[layout, way], runs[layout, "plain"], strict=True):
        np.testing.assert_allclose(found.outputs, plain.outputs, rtol=TOLERANCE, atol=TOLERANCE)
        np.testing.assert_allclose(
            found.input_grads, plain.input_grads, rtol=TOLERANCE, atol=TOLERANCE
        )


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "gpt tied"])
@pytest.mark.parametrize("way", ["split", "split at once"])
def test_a_divided_backward_sums_in_the_same_order_bit_by_bit(
    runs: Runs, layout: str, way: str
) -> None:
    for found, plain in zip(runs[layout, way], runs[layout, "plain"], strict=True):
        for name, gradient in plain.gradients.items():
            assert (found.gradients[name] == gradient).all(), name


@every_layout
def test_every_trained_weight_gets_a_gradient(runs: Runs, layout: str) -> None:
    trains = layout != "gpt frozen"
    found = [seen.gradients for seen in runs[layout, "split"]]
    assert any(found) == trains
    untouched = [n for gradients in found for n, g in gradients.items() if not g.any()]
    assert all("experts" in name or "bias" in name for name in untouched), untouched


@every_layout
@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_left_after_a_step(runs: Runs, layout: str, way: str) -> None:
    for seen in runs[layout, way]:
        assert seen.live_bytes[-1] == 0
        assert seen.kept_outputs == 0, "sent rows were kept"


@even_layouts
def test_memory_grows_with_the_microbatches_in_flight(runs: Runs, layout: str) -> None:
    """All-forward-all-backward holds four, 1F1B as many as it has warmed up with."""
    for rank in range(len(runs[layout, "plain"])):
        four, two, one = (
            runs[layout, way][rank].peak_bytes
            for way in ("plain", "two at a time", "one at a time")
        )
        per_microbatch = two - one
        assert 0.5 * one < per_microbatch <= one
        assert four == one + 3 * per_microbatch


@even_layouts
def test_recomputation_takes_less_memory(runs: Runs, layout: str) -> None:
    for rank, plain in enumerate(runs[layout, "plain"]):
        full = runs[layout, "full"][rank]
        assert full.live_bytes[3] < 0.7 * plain.live_bytes[3]
        assert full.live_bytes[3] < full.peak_bytes, "a layer computed again takes memory too"
        assert full.peak_bytes < plain.peak_bytes


@pytest.mark.parametrize("layout", ["gpt", "gpt tp2 sp", "vit"])
def test_weight_gradients_that_wait_take_memory(runs: Runs, layout: str) -> None:
    operations = WAYS["split"][1].split()
    for seen in runs[layout, "split"]:
        live_bytes = dict(zip(operations, seen.live_bytes, strict=True))
        assert live_bytes["I3"] > live_bytes["W1"] > live_bytes["W2"] > live_bytes["W3"] == 0
