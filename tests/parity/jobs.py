"""Small jobs whose layouts are compared with one process."""

from math import prod
from typing import Any

from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job

Degrees = dict[str, Any]


def small_job(
    vision: Degrees, language: Degrees, colocated: bool = False, **train: Any
) -> JobConfig:
    """Return a job of a 2-layer ViT and a 2-layer GPT with the given degrees.

    Images differ in size and a third of the samples are text only, so that some microbatches
    and replicas have no image.
    """
    sizes = {
        name: prod(degrees.get(axis, 1) for axis in ("tp", "cp", "dp", "pp"))
        for name, degrees in (("vision", vision), ("language", language))
    }
    home = "language" if colocated else "encoders"
    groups = {home: {"ranks": sizes["vision"]}, "language": {"ranks": sizes["language"]}}
    vit = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "patch_size": 4}
    gpt = {"num_layers": 2, "hidden_size": 48, "num_attention_heads": 8, "num_query_groups": 4}
    optimizer = {"lr": 1e-3, "clip_grad": 1.0}
    return load_job(
        {
            "name": "parity",
            "seed": 11,
            "groups": groups,
            "modules": {
                "vision": {
                    "kind": "vit",
                    "group": home,
                    "parallel": vision,
                    "model": vit,
                    "projector": {"merge": 2},
                },
                "language": {
                    "kind": "gpt",
                    "group": "language",
                    "parallel": language,
                    "model": gpt,
                },
            },
            "data": {"options": {"samples": 64, "max_digits": 6, "text_only": 0.35}},
            "train": {
                "steps": 10,
                "global_batch": 11,
                "microbatches": 3,
                "optimizer": optimizer,
                "evaluation": {"samples": 0},
                **train,
            },
            "deadlines": {"exchange_s": 60},
        }
    )
