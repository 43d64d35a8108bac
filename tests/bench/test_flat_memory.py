"""The driver's memory and the object store's do not grow with the images.

Each size is trained in a process of its own, whose peak memory the system knows.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ray.chat_jobs import chat_job, photo, record, save_set
from tests.unit.data.chat.making import save_tokenizer

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.timeout(900)]

_SIDES = (64, 640)
_SAMPLES, _SLACK, _DEADLINE_S = 96, 1.10, 400.0
_ONE_PLAN_BYTES = 32_768
_VISION = {"kind": "siglip", "model": {"image_size": 32, "patch_size": 8}}

_TRAIN = """
import json, ray, resource, sys
from ray._private.internal_api import node_stats
from disagg_train.trainer import Trainer

trainer, stored = Trainer(sys.argv[1]), []
for record in trainer.fit():
    node = ray.nodes()[0]
    found = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"])
    stored.append(found.store_stats.object_store_bytes_used)
peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"driver_peak_bytes": peak_kib * 1024, "object_store_bytes": max(stored)}))
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, int]]:
    folder = tmp_path_factory.mktemp("flat")
    tokenizer = save_tokenizer(folder / "tokenizer")
    return {side: _measure(folder / str(side), tokenizer, side) for side in _SIDES}


def _measure(folder: Path, tokenizer: str, side: int) -> dict[str, int]:
    folder.mkdir()
    for number in range(_SAMPLES):
        (folder / f"{number}.jpg").write_bytes(photo(number, side))
    held_out = save_set(folder, "held_out", [record(f"h{n}", f"{n}.jpg") for n in range(4)])
    path = save_set(folder, "train", [record(str(n), f"{n}.jpg") for n in range(_SAMPLES)])
    overrides = (
        "train.global_batch=16",
        "train.steps=6",
        "train.evaluation.every_steps=3",
        "recovery.restart=job",  # copies of the state would pass through the object store
    )
    job: Any = chat_job(
        tokenizer, path, folder / "run", *overrides, vision=_VISION, evaluation=held_out
    )
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    done = subprocess.run(
        [sys.executable, "-c", _TRAIN, str(file)],
        capture_output=True,
        text=True,
        timeout=_DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_drivers_peak_memory_is_flat(measured: dict[int, dict[str, int]], keep: Any) -> None:
    keep("flat_memory", {str(side): found for side, found in measured.items()})
    small, large = (measured[side]["driver_peak_bytes"] for side in _SIDES)
    assert large <= small * _SLACK


def test_the_object_store_is_flat(measured: dict[int, dict[str, int]]) -> None:
    small, large = (measured[side]["object_store_bytes"] for side in _SIDES)
    assert large <= small * _SLACK + _ONE_PLAN_BYTES  # a plan more may wait; images are megabytes
