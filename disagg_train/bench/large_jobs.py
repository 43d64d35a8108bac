"""Jobs of many ranks, to be planned and simulated, never run. Pure."""

from collections.abc import Mapping
from math import prod
from typing import Any

from disagg_train.bench.model_sizes import Sizes
from disagg_train.bench.spreads import ENCODER, PATCHES_PER_TOKEN
from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.config.load import load_job
from disagg_train.topology.grid import AXES


def large_job(
    name: str,
    encoder: Sizes,
    encoder_dp: int,
    language: Sizes,
    degrees: Mapping[str, Any],
    **train: Any,
) -> JobConfig:
    """Return a job of an encoder and an LLM on ranks of their own, in bf16.

    Args:
        name: of the job.
        encoder: its sizes.
        encoder_dp: its replicas, of a rank each.
        language: the LLM's sizes.
        degrees: of the LLM's parallelism.
        train: what a step is.

    Raises:
        ConfigError: the job breaks a rule.
    """
    language_ranks = prod(degrees.get(axis, 1) for axis in AXES)
    return load_job(
        {
            "name": name,
            "groups": {"encoders": {"ranks": encoder_dp}, LANGUAGE: {"ranks": language_ranks}},
            "modules": {
                ENCODER: {
                    "kind": "vit",
                    "group": "encoders",
                    "parallel": {"dp": encoder_dp},
                    "model": dict(encoder),
                    "projector": {"merge": PATCHES_PER_TOKEN},
                },
                LANGUAGE: {
                    "kind": "gpt",
                    "group": LANGUAGE,
                    "parallel": dict(degrees),
                    "model": dict(language),
                },
            },
            "train": {"steps": 1, "precision": "bf16", "optimizer": {"lr": 1e-4}, **train},
        }
    )
