"""The jobs that are measured: two ranks or more, steps of 300 ms or more. Pure."""

from collections.abc import Mapping
from typing import Any

from disagg_train.bench.spreads import ENCODER, PATCHES_PER_TOKEN
from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.config.load import load_job

_SIZES = {"num_layers": 4, "hidden_size": 256, "num_attention_heads": 4}
_EQUAL_TEXTS = "disagg_train.bench.texts:EqualTexts"


def disjoint_job() -> JobConfig:
    """Return an encoder on one rank and the LLM on another."""
    modules = {
        "vision": _encoder("encoders"),
        LANGUAGE: {"kind": "gpt", "group": "language", "model": _SIZES},
    }
    return _job("bench-step", {"encoders": 1, "language": 1}, modules, 4)


def pipeline_job() -> JobConfig:
    """Return the LLM in two pipeline stages, with the encoder on both ranks (dp=2)."""
    modules = {
        "vision": {**_encoder("language"), "parallel": {"dp": 2}},
        LANGUAGE: _pipelined_language(),
    }
    return _job("bench-pipeline", {"language": 2}, modules, 8)


def language_job() -> JobConfig:
    """Return the LLM alone in two pipeline stages, with microbatches of equal length.

    Megatron's pipeline receives equal shapes without asking for them first.
    """
    modules = {LANGUAGE: _pipelined_language()}
    return _job("bench-language", {"language": 2}, modules, 8, _EQUAL_TEXTS)


def stateful_job(num_layers: int, language_ranks: int = 1) -> JobConfig:
    """Return an encoder and an LLM with weights that are many for the work of a step.

    Weights, their fp32 copies and Adam's averages make up the state: 21 MB per layer, of each.

    Args:
        num_layers: of the encoder, on one rank, and of the LLM.
        language_ranks: data-parallel replicas of the LLM, which share its averages out.
    """
    sizes = {"num_layers": num_layers, "hidden_size": 384, "num_attention_heads": 4}
    modules = {
        "vision": {
            "kind": "vit",
            "group": "encoders",
            "model": {**sizes, "patch_size": 4},
        },
        LANGUAGE: {
            "kind": "gpt",
            "group": "language",
            "model": sizes,
            "parallel": {"dp": language_ranks},
        },
    }
    ranks = {"encoders": 1, "language": language_ranks}
    return _job("bench-state", ranks, modules, microbatches=2, global_batch=8)


def drawn_job(
    name: str, layers: Mapping[str, int], widths: tuple[int, int], options: Mapping[str, Any]
) -> JobConfig:
    """Return an encoder on two ranks and an LLM on two others, all dp, on data of some spread.

    Args:
        name: of the job.
        layers: sizes that both modules have.
        widths: of the encoder's layers, and of the LLM's.
        options: of the data (``Drawn``).
    """
    vit = {"hidden_size": widths[0], "patch_size": 4, "max_patches_per_side": 512}
    modules = {
        ENCODER: {
            "kind": "vit",
            "group": "encoders",
            "parallel": {"dp": 2},
            "model": {**layers, **vit},
            "projector": {"merge": PATCHES_PER_TOKEN},
        },
        LANGUAGE: {
            "kind": "gpt",
            "group": "language",
            "parallel": {"dp": 2},
            "model": {**layers, "hidden_size": widths[1]},
        },
    }
    data = {"kind": "disagg_train.bench.drawn:Drawn", "options": dict(options)}
    return _job(name, {"encoders": 2, "language": 2}, modules, microbatches=8, data=data)


def balanced_by(job: JobConfig, balance: str, **train: Any) -> JobConfig:
    """Return the job with another ``train.balance``, samples put off where that is not ``none``."""
    changes = {"balance": balance, "deferral_span": 0 if balance == "none" else 1, **train}
    return job.model_copy(update={"train": job.train.model_copy(update=changes)})


def with_steps(job: JobConfig, steps: int) -> JobConfig:
    """Return the job with another number of steps."""
    return job.model_copy(update={"train": job.train.model_copy(update={"steps": steps})})


def _encoder(group: str) -> dict[str, Any]:
    return {"kind": "vit", "group": group, "model": {**_SIZES, "patch_size": 4}}


def _pipelined_language() -> dict[str, Any]:
    return {"kind": "gpt", "group": "language", "model": _SIZES, "parallel": {"pp": 2}}


def _job(
    name: str,
    ranks: dict[str, int],
    modules: dict[str, Any],
    microbatches: int,
    data: str | Mapping[str, Any] = "digits",
    global_batch: int = 32,
) -> JobConfig:
    return load_job(
        {
            "name": name,
            "groups": {group: {"ranks": count} for group, count in ranks.items()},
            "modules": modules,
            "data": {"kind": data} if isinstance(data, str) else data,
            "train": {
                "steps": 1,
                "global_batch": global_batch,
                "microbatches": microbatches,
                "trace_steps": 0,
                "optimizer": {"lr": 1e-3},
                "evaluation": {"samples": 0},
            },
            "device": "cpu",
        }
    )
