"""A small valid job, to break in one place at a time."""

from collections.abc import Mapping
from typing import Any

import pytest

from disagg_train.config.load import load_job
from disagg_train.errors import ConfigError

JOB: Mapping[str, Any] = {
    "name": "digits",
    "groups": {"encoders": {"ranks": 2}, "language": {"ranks": 4}},
    "modules": {
        "vision": {
            "kind": "vit",
            "group": "encoders",
            "parallel": {"dp": 2},
            "model": {
                "num_layers": 2,
                "hidden_size": 32,
                "num_attention_heads": 4,
                "patch_size": 4,
            },
        },
        "language": {
            "kind": "gpt",
            "group": "language",
            "parallel": {"tp": 2, "dp": 2},
            "model": {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 8},
        },
    },
    "train": {"steps": 3, "global_batch": 8, "microbatches": 2, "optimizer": {"lr": 0.001}},
}


def refusal(*overrides: str, job: Mapping[str, Any] = JOB) -> str:
    """Return the message with which the job is refused after the overrides."""
    with pytest.raises(ConfigError) as caught:
        load_job(job, overrides)
    return str(caught.value)
