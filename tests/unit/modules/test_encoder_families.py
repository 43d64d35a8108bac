"""Pretrained encoders give what transformers gives, on any layout."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from disagg_train.driver.parity import max_relative_gradient
from tests.unit.forked import run_ranks
from tests.unit.modules.encoder_ranks import (
    LAYOUTS,
    Case,
    Seen,
    Tensors,
    cases,
    encode,
    grid_of,
    job_of,
)
from tests.unit.modules.towers import FAMILIES, save_tower

TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-5
QUICK = ("one", "tp2 sp")


class Trials:
    """The towers of transformers, and what the ranks of each layout saw.

    Ranks are forked after one slow import, when their layout is first asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.towers = {kind: save_tower(kind, folder / kind) for kind in FAMILIES}
        self._seen: dict[str, list[Seen]] = {}

    def seen(self, layout: str) -> list[Seen]:
        """Return what each rank saw."""
        if layout not in self._seen:
            folder = self.folder / layout.replace(" ", "-")
            folder.mkdir()
            ranks = grid_of(layout).size
            self._seen[layout] = run_ranks(encode, ranks, folder, layout, self.folder)
        return self._seen[layout]


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Trials:
    """Return every trial."""
    return Trials(tmp_path_factory.mktemp("encoders"))


def marks_of(layout: str) -> Collection[pytest.MarkDecorator]:
    return () if layout in QUICK else (pytest.mark.slow,)


layouts = pytest.mark.parametrize(
    "layout", [pytest.param(layout, marks=marks_of(layout)) for layout in LAYOUTS]
)
several_lanes = pytest.mark.parametrize(
    "layout",
    [pytest.param(layout, marks=marks_of(layout)) for layout in ("tp2", "tp2 sp", "cp2")],
)


def name_of(case: Case) -> str:
    kind, layer, norm = case
    return f"{kind} {layer}{' normed' if norm else ''}"


@pytest.mark.parametrize(
    ("layout", "case"),
    [
        pytest.param(layout, case, id=f"{layout}-{name_of(case)}", marks=marks_of(layout))
        for layout in LAYOUTS
        for case in cases(layout)
    ],
)
def test_outputs_equal_those_of_transformers(trials: Trials, layout: str, case: Case) -> None:
    kind, layer, norm = case
    expected_TD = trials.towers[kind].outputs[layer, norm]
    held = [seen.rows[case] for seen in trials.seen(layout)]
    assert {token for rows in held for token in rows} == set(range(len(expected_TD)))
    for rows in held:
        for token, row_D in rows.items():
            assert relative_error(row_D, expected_TD[token]) <= TOLERANCE


def relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def union(parts: Iterable[Tensors]) -> Tensors:
    """Return all ranks' tensors."""
    return {name: tensor for part in parts for name, tensor in part.items()}


@pytest.mark.parametrize("kind", FAMILIES)
@several_lanes
def test_gradients_equal_those_of_one_process(trials: Trials, layout: str, kind: str) -> None:
    found, expected = (
        union(seen.gradients[kind] for seen in trials.seen(name)) for name in (layout, "one")
    )
    assert len(expected) > 40
    assert max_relative_gradient(found, expected) <= GRADIENT_TOLERANCE


@pytest.mark.parametrize("kind", FAMILIES)
@layouts
def test_weights_go_back_to_the_checkpoint_bit_by_bit(
    trials: Trials, layout: str, kind: str
) -> None:
    import torch

    from disagg_train.modules.hf.encoders import encoder_naming

    job = job_of((kind, *FAMILIES[kind].outputs[0]), LAYOUTS[layout], trials.folder)
    naming, back = encoder_naming(job.encoders["vision"]), {}
    for name, weight in union(seen.weights[kind] for seen in trials.seen(layout)).items():
        rule = naming(name.removeprefix("vision."))
        assert (rule is None) == name.startswith("vision.projector.")
        if rule is not None:
            back |= dict(zip(rule.names, rule.split(torch.from_numpy(weight)), strict=True))
    for name, tensor in back.items():
        assert torch.equal(tensor, trials.towers[kind].tensors[name])
    unused = trials.towers[kind].tensors.keys() - back.keys()
    pooled = "post_layernorm." if kind == "clip" else "head."
    assert all(name.startswith(pooled) for name in unused)


@pytest.mark.parametrize("kind", FAMILIES)
def test_fixed_positions_have_no_gradient_and_all_else_has(trials: Trials, kind: str) -> None:
    (seen,) = trials.seen("one")
    fixed = {"vision.embedding.position.weight"} if kind == "whisper" else set()
    assert seen.weights[kind].keys() - seen.gradients[kind].keys() == fixed
    zero = [name for name, gradient in seen.gradients[kind].items() if not gradient.any()]
    assert zero == []


def test_keys_of_whisper_have_no_bias(trials: Trials) -> None:
    for seen in trials.seen("tp2 sp"):
        for name, weight in seen.weights["whisper"].items():
            if name.endswith("linear_qkv.bias"):
                query, key, value = weight.reshape(4, 3, -1).swapaxes(0, 1)
                assert query.any() and value.any() and not key.any()
