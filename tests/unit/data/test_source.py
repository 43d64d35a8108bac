"""Which processor an encoder of a job gets, and with what a source is made."""

from pathlib import Path
from typing import Any

import pytest

from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.data.audio_processors import WhisperFrames
from disagg_train.data.image_processors import ImageGeometry, NaflexImages, SquareImages
from disagg_train.data.processors import TokenCount
from disagg_train.data.source import Sample, load_part, make_processors, open_source
from disagg_train.errors import ConfigError
from tests.unit.config.jobs import JOB

_SIZES = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2}
_FAMILIES: dict[str, tuple[dict[str, int], type, int, tuple[int, int], TokenCount]] = {
    "vit": ({"patch_size": 4}, ImageGeometry, 2, (15, 9), TokenCount(8, 4)),
    "clip": ({"image_size": 30, "patch_size": 7}, SquareImages, 1, (15, 9), TokenCount(16, 16)),
    "siglip": ({"image_size": 16, "patch_size": 4}, SquareImages, 4, (15, 9), TokenCount(16, 4)),
    "siglip2": ({"patch_size": 4}, NaflexImages, 4, (40, 40), TokenCount(256, 64)),
    "whisper": ({"max_tokens": 20}, WhisperFrames, 5, (800, 8000), TokenCount(20, 4)),
}


def _job(vision: dict[str, Any], data: dict[str, Any] | None = None) -> JobConfig:
    home = {"group": "encoders", "parallel": {"dp": 2}}
    modules = dict(JOB["modules"]) | {"vision": home | vision}
    return load_job(dict(JOB) | {"modules": modules} | ({"data": data} if data else {}))


def _family(kind: str) -> dict[str, Any]:
    sizes, _, merge, _, _ = _FAMILIES[kind]
    return {"kind": kind, "model": _SIZES | sizes, "projector": {"merge": merge}}


@pytest.mark.parametrize("kind", _FAMILIES)
def test_every_family_has_its_processor(kind: str) -> None:
    _, processor_class, _, size, count = _FAMILIES[kind]
    found = make_processors(_job(_family(kind)))["vision"]
    assert isinstance(found, processor_class)
    assert found.count(size) == count
    assert found.modality == ("audio" if kind == "whisper" else "image")
    assert " at 0x" not in repr(found)


def test_a_checkpoint_without_a_processor_leaves_the_usual_one(tmp_path: Path) -> None:
    job = _job(_family("siglip2") | {"max_num_patches": 64})
    named = job.modules["vision"].model_copy(update={"pretrained": str(tmp_path)})
    job = job.model_copy(update={"modules": dict(job.modules) | {"vision": named}})
    assert make_processors(job)["vision"].count((40, 40)) == TokenCount(64, 16)


def test_strips_of_digits_need_an_encoder_of_any_size() -> None:
    with pytest.raises(ConfigError, match="only an encoder of kind `vit` .*takes; modules.vision"):
        open_source(_job(_family("siglip")))


class Plain:
    """A source that notes with what it was made."""

    def __init__(self, processors: Any, seed: int, colour: str = "") -> None:
        self.made_with = processors, seed, colour

    def load(self, key: int) -> str:
        return f"whole {key}"


class InParts(Plain):
    """A source that can leave inputs out."""

    def load_part(self, key: int, encoders: Any) -> str:
        return f"{key} with {sorted(encoders)}"


def test_a_source_is_made_with_processors_seed_and_options() -> None:
    job = _job(_family("vit"), {"kind": f"{__name__}:Plain", "options": {"colour": "red"}})
    processors, seed, colour = open_source(job).made_with  # type: ignore[attr-defined]
    assert (list(processors), seed, colour) == (["vision"], job.seed, "red")


def test_sources_that_can_load_parts_are_asked_for_parts() -> None:
    found: list[Sample] = [load_part(c({}, 0), 3, {"vision"}) for c in (Plain, InParts)]  # type: ignore[arg-type]
    assert found == ["whole 3", "3 with ['vision']"]


def test_conversations_take_the_llms_tokenizer_and_the_policy() -> None:
    job = _job(_family("vit"), {"kind": "chat", "options": {}})
    with pytest.raises(ConfigError, match=r"tokenizer.*modules\.language\.pretrained"):
        open_source(job)
