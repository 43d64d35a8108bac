"""100,000 samples are indexed in minutes, and a hundredth of them in a moment.

Conversations of some 450 tokens with a small JPEG each; one in a hundred JPEGs is then written
anew, and one in a hundred records. The tokenizer is small, so a text has more tokens than usual.
"""

import json
import random
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from disagg_train.bench.machine import commit, hardware
from tests.unit.data.chat.making import Patches, llava, open_chat, save_tokenizer

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

_SAMPLES, _PER_FOLDER = 20_000, 1000
_LEAST_PER_S = 100_000 / 600
_LEAST_SPEED_UP = 10
_WORDS = ("what", "is", "in", "this", "picture", "a", "red", "hat", "hello", "world", "trees")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    folder = tmp_path_factory.mktemp("index")
    tokenizer = save_tokenizer(folder / "tokenizer")
    for number in range(_SAMPLES):
        _write_image(folder, number, 0)
    records = _records()
    (folder / "set.json").write_text(json.dumps(records))

    def build() -> float:
        processors = {"vision": Patches()}
        source = open_chat(tokenizer, {"path": str(folder / "set.json")}, processors=processors)
        begin_s = time.perf_counter()
        assert len(source.sizes("train")) == _SAMPLES
        return time.perf_counter() - begin_s

    found = {"full_s": build(), "nothing_changed_s": build()}
    found["one_percent_of_images_s"] = _after(
        lambda: [_write_image(folder, i, 1) for i in range(0, _SAMPLES, 100)], build
    )
    for record in records[::100]:
        record["conversations"][0]["value"] += " more"
    found["one_percent_of_records_s"] = _after(
        lambda: (folder / "set.json").write_text(json.dumps(records)), build
    )
    return found


def _after(change: Callable[[], object], build: Callable[[], float]) -> float:
    change()
    return build()


def _write_image(folder: Path, number: int, version: int) -> None:
    below = folder / str(number // _PER_FOLDER)
    below.mkdir(exist_ok=True)
    (below / f"{number}.jpg").write_bytes(_JPEGS[(number + version) % len(_JPEGS)])


def _jpeg(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    rows, columns = (int(side) for side in rng.integers(6, 10, 2))
    pixels = rng.integers(0, 255, (rows, columns, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).resize((16 * columns, 8 * rows)).save(file, "JPEG")
    return file.getvalue()


_JPEGS = [_jpeg(seed) for seed in range(32)]


def _records() -> list[dict[str, object]]:
    words = random.Random(0)

    def text(most: int) -> str:
        return " ".join(words.choices(_WORDS, k=words.randint(5, most)))

    records = []
    for number in range(_SAMPLES):
        image = f"{number // _PER_FOLDER}/{number}.jpg"
        record = llava(f"{number}", "<image>\n" + text(25), text(60), image=image)
        for _ in range(words.randint(0, 3)):
            turns = [{"from": "human", "value": text(25)}, {"from": "gpt", "value": text(60)}]
            record["conversations"] += turns
        records.append(record)
    return records


def test_100_000_samples_take_minutes(measured, keep) -> None:
    rate = _SAMPLES / measured["full_s"]
    result = {"samples": _SAMPLES, "samples_per_s": rate, **measured}
    keep("sizes-index", {**result, "hardware": hardware(), "commit": commit()})
    assert rate >= _LEAST_PER_S, measured


@pytest.mark.parametrize("what", ["images", "records"])
def test_only_what_changed_is_measured_again(measured, what: str) -> None:
    assert measured["full_s"] >= _LEAST_SPEED_UP * measured[f"one_percent_of_{what}_s"], measured
