"""Encoders of every family train on several layouts what they train in one process."""

from math import prod
from typing import Any

import pytest

from actors.pool import ActorPool
from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.trainer import Trainer
from tests.parity.jobs import Degrees

pytestmark = pytest.mark.ray

_SIZES = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
_PATCHES = _SIZES | {"patch_size": 7}
_FAMILIES: dict[str, dict[str, Any]] = {
    "clip": {"model": _PATCHES | {"image_size": 28}},
    "siglip": {"model": _PATCHES | {"image_size": 28}, "projector": {"merge": 2}},
    "siglip2": {"model": _PATCHES, "projector": {"merge": 4}},
    "whisper": {"model": _SIZES | {"num_mel_bins": 8, "max_tokens": 10}},
}
_INPUTS = {
    "clip": [((28, 28, 3), 16)],
    "siglip": [((28, 28, 3), 16)],
    "siglip2": [((28, 42, 3), 24), ((14, 14, 3), 4), ((14, 56, 3), 16)],
    "whisper": [((20, 8), 10)],
}
_SP = {"tp": 2, "sp": True}


@pytest.mark.parametrize(
    ("kind", "vision", "language"),
    [
        ("clip", _SP, {"cp": 2}),
        pytest.param("clip", {"cp": 2}, _SP, marks=pytest.mark.slow),
        pytest.param("clip", {"pp": 2}, {"dp": 2}, marks=pytest.mark.slow),
        pytest.param("siglip", _SP, {"dp": 2}, marks=pytest.mark.slow),
        pytest.param("siglip2", {"cp": 2}, {"cp": 2}, marks=pytest.mark.slow),
        pytest.param("siglip2", {"pp": 2, "dp": 2}, _SP, marks=pytest.mark.slow),
        pytest.param("whisper", {"cp": 2}, _SP, marks=pytest.mark.slow),
        pytest.param("whisper", {"tp": 2}, {"pp": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_family_trains_the_same_model_on_any_layout(
    pool: ActorPool, kind: str, vision: Degrees, language: Degrees
) -> None:
    parity = Trainer(_job(kind, vision, language)).verify(4, pool)
    assert parity.ok, parity


def _job(kind: str, vision: Degrees, language: Degrees) -> JobConfig:
    modules = {
        "vision": _FAMILIES[kind] | {"kind": kind, "group": "encoders", "parallel": vision},
        "language": {
            "kind": "gpt",
            "group": "language",
            "parallel": language,
            "model": {"num_layers": 2, "hidden_size": 48, "num_attention_heads": 8},
        },
    }
    merge = modules["vision"].get("projector", {}).get("merge", 1)
    inputs = [[shape, count // merge, count] for shape, count in _INPUTS[kind]]
    ranks = {"encoders": _ranks(vision), "language": _ranks(language)}
    return load_job(
        {
            "name": kind,
            "seed": 7,
            "groups": {name: {"ranks": count} for name, count in ranks.items()},
            "modules": modules,
            "data": {"kind": "tests.parity.sources:Shapes", "options": {"inputs": inputs}},
            "train": {
                "steps": 4,
                "global_batch": 7,
                "microbatches": 2,
                "optimizer": {"lr": 1e-3, "clip_grad": 1.0},
                "evaluation": {"samples": 0},
            },
            "deadlines": {"exchange_s": 60},
        }
    )


def _ranks(degrees: Degrees) -> int:
    return prod(degrees.get(axis, 1) for axis in ("tp", "cp", "dp", "pp"))
