"""A small job to plan, and machines on which collectives and memory count."""

from typing import Any

from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.config.load import load_job
from disagg_train.planner.machine import Machine
from disagg_train.planner.step_plan import SampleSize, Slot

MACHINE = Machine(
    flops_per_s=1e12,
    link_bytes_per_s=1e9,
    latency_s=1e-6,
    memory_bytes_per_s=1e11,
    node_bytes_per_s=1e10,
    ranks_per_node=8,
    memory_bytes=1e9,
    launch_s=1e-6,
)


def small_job(encoders: int = 1, **train: Any) -> JobConfig:
    """Return a job of some encoders and an LLM with a rank each."""
    names = ("vision", "audio", "depth")[:encoders]
    modules: dict[str, Any] = {
        name: {
            "kind": "vit",
            "group": name,
            "model": {
                "num_layers": 4,
                "hidden_size": 64,
                "num_attention_heads": 4,
                "patch_size": 4,
            },
        }
        for name in names
    }
    modules[LANGUAGE] = {
        "kind": "gpt",
        "group": LANGUAGE,
        "model": {
            "num_layers": 8,
            "hidden_size": 128,
            "num_attention_heads": 8,
            "num_query_groups": 4,
            "vocab_size": 256,
        },
    }
    return load_job(
        {
            "name": "planned",
            "groups": {name: {"ranks": 1} for name in modules},
            "modules": modules,
            "train": {
                "steps": 1,
                "global_batch": 16,
                "microbatches": 4,
                "optimizer": {"lr": 1e-3},
                **train,
            },
        }
    )


def samples(job: JobConfig, count: int, patches: int = 64) -> tuple[SampleSize, ...]:
    """Return samples of growing sizes with an image for every encoder."""
    found = []
    for key in range(count):
        sizes = dict.fromkeys(job.encoders, patches + 16 * (key % 5))
        slots, position = {}, 0
        for name, size in sizes.items():
            slots[name] = (Slot(position, size),)
            position += size
        length = position + 32 + 8 * (key % 7)
        computed = {name: (size,) for name, size in sizes.items()}
        found.append(SampleSize(key, length, 8, slots, computed))
    return tuple(found)
