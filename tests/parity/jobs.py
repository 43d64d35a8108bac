"""Small jobs whose layouts are compared with one process."""

from math import prod
from typing import Any

from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job

Degrees = dict[str, Any]

_VIT = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "patch_size": 4}
_AUDIO = {"num_layers": 2, "hidden_size": 24, "num_attention_heads": 4, "patch_size": 2}
_GPT = {"num_layers": 2, "hidden_size": 48, "num_attention_heads": 8, "num_query_groups": 4}
_DIGITS = {"options": {"samples": 64, "max_digits": 6, "text_only": 0.35}}
_INTERLEAVED = {"kind": "tests.parity.sources:Interleaved"}


def small_job(
    vision: Degrees,
    language: Degrees,
    colocated: bool = False,
    audio: Degrees | None = None,
    num_layers: int = 2,
    num_experts: int | None = None,
    packed: bool = True,
    **train: Any,
) -> JobConfig:
    """Return a job of a small ViT and a small GPT with the given degrees.

    Images differ in size and a third of the samples are text only, so that some microbatches
    and replicas have no image.

    Args:
        vision: degrees of the vision encoder.
        language: degrees of the LLM.
        colocated: put the vision encoder on the LLM's ranks.
        audio: degrees of a second encoder on ranks of its own, if there is to be one; samples
            then mix inputs of both in any order.
        num_layers: of each module.
        num_experts: of the LLM, if it is to have any.
        packed: whether the LLM's samples are packed.
        train: more of the job's ``train`` part.
    """
    home = "language" if colocated else "encoders"
    groups = {home: {"ranks": _num_ranks(vision)}, "language": {"ranks": _num_ranks(language)}}
    layers = {"num_layers": num_layers}
    modules: dict[str, Any] = {
        "vision": _encoder(home, vision, _VIT | layers, merge=2),
        "language": {
            "kind": "gpt",
            "group": "language",
            "parallel": language,
            "model": _GPT | layers | ({"num_experts": num_experts} if num_experts else {}),
            "packed": packed,
        },
    }
    if audio is not None:
        groups["audio"] = {"ranks": _num_ranks(audio)}
        modules["audio"] = _encoder("audio", audio, _AUDIO | layers, merge=1)
    return load_job(
        {
            "name": "parity",
            "seed": 11,
            "groups": groups,
            "modules": modules,
            "data": _DIGITS if audio is None else _INTERLEAVED,
            "train": {
                "steps": 10,
                "global_batch": 11,
                "microbatches": 3,
                "optimizer": {"lr": 1e-3, "clip_grad": 1.0},
                "evaluation": {"samples": 0},
                **train,
            },
            "deadlines": {"exchange_s": 60},
        }
    )


def _num_ranks(degrees: Degrees) -> int:
    return prod(degrees.get(axis, 1) for axis in ("tp", "cp", "dp", "pp"))


def _encoder(group: str, degrees: Degrees, model: dict[str, Any], merge: int) -> dict[str, Any]:
    return {
        "kind": "vit",
        "group": group,
        "parallel": degrees,
        "model": model,
        "projector": {"merge": merge},
    }
