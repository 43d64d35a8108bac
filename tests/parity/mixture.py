"""A mixture on disk: photos with questions, plain chat, and recordings; with tiny models for it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from examples.llava.tiny import make

_RATE, _MEL_BINS = 16_000, 80


def save_mixture(folder: Path) -> None:
    """Write models and data below a folder."""
    make(folder, samples=24, held_out=6)
    _save_whisper(folder / "whisper")
    chat = [
        {"messages": [_turn("user", f"{i} + 1 = ?"), _turn("assistant", f"{i + 1}")]}
        for i in range(16)
    ]
    lines = (json.dumps({"id": f"sum-{i}", **each}) for i, each in enumerate(chat))
    (folder / "chat.jsonl").write_text("\n".join(lines))
    sounds = folder / "sounds"
    sounds.mkdir(exist_ok=True)
    (folder / "sounds.json").write_text(json.dumps([_sound(sounds, i) for i in range(16)]))


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _sound(folder: Path, number: int) -> dict[str, Any]:
    pitch = 200 + 100 * (number % 4)
    time_s = np.arange(_RATE // 4 + 500 * number) / _RATE
    soundfile.write(folder / f"{number}.wav", 0.3 * np.sin(2 * np.pi * pitch * time_s), _RATE)
    return {
        "id": f"sound-{number}",
        "audio": f"{number}.wav",
        "conversations": [
            {"from": "human", "value": "<audio>\nWhich pitch?"},
            {"from": "gpt", "value": f"{pitch}"},
        ],
    }


def _save_whisper(folder: Path) -> None:
    config = WhisperConfig(
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        num_mel_bins=_MEL_BINS,
        max_source_positions=50,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=_MEL_BINS, chunk_length=1).save_pretrained(folder)


def mixture_job(folder: Path) -> dict[str, Any]:
    """Return a job of two encoders and an LLM, each on a group of its own, four ranks in all."""
    return {
        "name": "mixture",
        "groups": {"vision": {"ranks": 1}, "audio": {"ranks": 1}, "language": {"ranks": 2}},
        "modules": {
            "vision": _module("siglip", "vision", folder / "siglip"),
            "audio": {**_module("whisper", "audio", folder / "whisper"), "projector": {"merge": 5}},
            "language": {
                **_module("gpt", "language", folder / "qwen"),
                "parallel": {"tp": 2, "sp": True},
            },
        },
        "data": {
            "kind": "chat",
            "options": {
                "max_tokens": 256,
                "sources": [
                    {"path": str(folder / "train.json"), "root": str(folder / "photos")},
                    {"path": str(folder / "chat.jsonl"), "weight": 0.5},
                    {"path": str(folder / "sounds.json"), "root": str(folder / "sounds")},
                ],
                "evaluation": {
                    "path": str(folder / "heldout.json"),
                    "root": str(folder / "photos"),
                },
                "max_new_tokens": 12,
            },
        },
        "train": {
            "steps": 4,
            "global_batch": 9,
            "microbatches": 3,
            "optimizer": {"lr": 1e-3},
            "evaluation": {"samples": 6},
        },
    }


def _module(kind: str, group: str, pretrained: Path) -> dict[str, Any]:
    return {"kind": kind, "group": group, "pretrained": str(pretrained)}
