"""Jobs on small chat data sets with pictures, some of them bad."""

import json
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from disagg_train.config.load import load_job

_SIZES = {"num_layers": 1, "num_attention_heads": 2}
_LONG = 120


def photo(number: int, side: int = 16, kind: str = "JPEG") -> bytes:
    """Return an image file that holds noise."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def record(name: str, image: str | None, question: str = "what", answer: str = "red") -> Any:
    """Return a record of one question, about an image where one is given."""
    asked = f"<image>{question}" if image is not None else question
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    return {"id": name, "conversations": turns} | ({"image": image} if image is not None else {})


def save_set(folder: Path, name: str, records: Iterable[Any]) -> Path:
    """Write a set, one line per record; bytes are written as they are."""
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
    path = folder / f"{name}.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def chat_job(
    tokenizer: str,
    path: Path,
    output: Path,
    *overrides: str,
    vision: Mapping[str, Any] | None = None,
    evaluation: Path | None = None,
    language: Sequence[int] = (1, 1),
) -> dict[str, Any]:
    """Return a job of a small encoder and a small LLM on ranks of their own.

    Args:
        tokenizer: its folder.
        path: of the training set; sets are called by one name, wherever they are.
        output: folder of the run.
        overrides: of the job.
        vision: kind and sizes of the encoder; a small ViT where not given.
        evaluation: the held-out set.
        language: tp and dp of the LLM.
    """
    tp, dp = language
    encoder = vision or {
        "kind": "vit",
        "model": {"patch_size": 4, "num_channels": 3, "max_patches_per_side": 8},
        "projector": {"merge": 2},
    }
    sizes = dict(_SIZES) | {"hidden_size": 16} | dict(encoder["model"])
    options: dict[str, Any] = {
        "tokenizer": tokenizer,
        "sources": [{"path": str(path), "name": "train", "root": str(path.parent)}],
        "max_tokens": _LONG,
        "max_new_tokens": 4,
        "index_workers": 1,
        "index_folder": str(output / "indexes"),
    }
    if evaluation is not None:
        root = str(evaluation.parent)
        options["evaluation"] = {"path": str(evaluation), "name": "held out", "root": root}
    content = {
        "name": "chat",
        "seed": 5,
        "groups": {"encoders": {"ranks": 1}, "language": {"ranks": tp * dp}},
        "modules": {
            "vision": {"group": "encoders", **encoder, "model": sizes},
            "language": {
                "kind": "gpt",
                "group": "language",
                "parallel": {"tp": tp, "dp": dp, "sp": tp > 1},
                "model": _SIZES | {"hidden_size": 32},
            },
        },
        "data": {"kind": "chat", "options": options},
        "train": {
            "steps": 5,
            "global_batch": 4,
            "microbatches": 2,
            "optimizer": {"lr": 1e-3},
            "evaluation": {"samples": 0 if evaluation is None else 3},
        },
        "output": str(output),
        "deadlines": {"exchange_s": 60},
    }
    return load_job(content, overrides).model_dump(mode="json")
