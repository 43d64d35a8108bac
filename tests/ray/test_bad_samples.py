"""Bad samples end a run with exit code 1 and their names, or leave no trace in the losses."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.pool import ActorPool
from disagg_train import trainer
from disagg_train.cli import main
from tests.ray.chat_jobs import chat_job, photo, record, save_set
from tests.unit.data.chat.making import save_tokenizer

pytestmark = pytest.mark.ray

_GOOD = 11


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def _bomb() -> bytes:
    content = bytearray(photo(0, kind="PNG"))
    content[16:24] = struct.pack(">II", 60_000, 50_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


_IN_INDEX: dict[str, tuple[Any, str]] = {
    "zero-byte": (record("zero-byte", "empty.jpg"), "'empty.jpg' is empty"),
    "bomb": (record("bomb", "bomb.png"), "decompression bomb"),
    "mismatch": (record("mismatch", "0.jpg", "<image>"), "more <image> placeholders"),
    "too-long": (record("too-long", None, "word " * 300), "max_tokens is 120"),
    "outside": (record("outside", "../secret.jpg"), "leaves the data root"),
    "utf-8": (b'{"id": "\xff"}', "invalid UTF-8"),
}
_WHEN_DECODED: dict[str, tuple[Any, str]] = {
    "truncated": (record("truncated", "cut.jpg"), "'cut.jpg': the image cannot be decoded"),
    "gone": (record("gone", "gone.jpg"), "'gone.jpg': No such file"),
    "resized": (record("resized", "resized.jpg"), "a file has changed, rebuild the index"),
}
_ALL = _IN_INDEX | _WHEN_DECODED


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of images, good and bad; some go bad once the index is built."""
    root = tmp_path / "data"
    root.mkdir()
    (tmp_path / "secret.jpg").write_bytes(photo(0))
    for number in range(_GOOD):
        (root / f"{number}.jpg").write_bytes(photo(number, 12 + 4 * (number % 4)))
    for name in ("gone", "resized"):
        (root / f"{name}.jpg").write_bytes(photo(99))
    (root / "empty.jpg").write_bytes(b"")
    (root / "bomb.png").write_bytes(_bomb())
    (root / "cut.jpg").write_bytes(photo(98, 64)[:-900])
    return root


def _good() -> list[Any]:
    pictures = [record(f"good {n}", f"{n}.jpg", answer=f"{n} reds") for n in range(_GOOD)]
    return [*pictures, record("text", None, "hello", "world")]


def _spoil(folder: Path) -> None:
    (folder / "gone.jpg").unlink(missing_ok=True)
    (folder / "resized.jpg").write_bytes(photo(97, 28))


Run = Callable[..., tuple[int, str, Path]]


@pytest.fixture
def run(
    pool: ActorPool,
    tokenizer: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Return what trains by the command on the pool's actors: exit code, message, output."""

    def session(job: Any, source: Any, **kept: Any) -> Any:
        _spoil(folder)
        return pool.session(job, source, **kept)

    monkeypatch.setattr(trainer, "on_cluster", session)

    def run(name: str, records: list[Any], *overrides: str, **more: Any) -> tuple[int, str, Path]:
        output = tmp_path / name
        path = save_set(folder, name, records)
        job = chat_job(tokenizer, path, output, *overrides, **more)
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(job))
        code = main(["train", str(file)])
        return code, capsys.readouterr().err, output

    return run


def _losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").open()]


@pytest.mark.parametrize(
    "kind", [*_IN_INDEX, *(pytest.param(kind, marks=pytest.mark.slow) for kind in _WHEN_DECODED)]
)
def test_a_bad_sample_ends_the_run_with_its_name_and_the_reason(kind: str, run: Run) -> None:
    bad, reason = _ALL[kind]
    code, message, _ = run(kind, [*_good(), bad], "train.global_batch=13")
    assert code == 1
    assert "DataError: " in message and "Traceback" not in message
    assert reason in message
    assert f"record {_GOOD + 2}" in message
    assert isinstance(bad, bytes) or f"sample {kind!r}" in message


@pytest.mark.parametrize("runs_ahead", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_skipped_samples_leave_no_trace_in_losses_and_evaluations(
    runs_ahead: bool, run: Run, folder: Path
) -> None:
    bad = [each for each, _ in _ALL.values()]
    held_out = [record(f"held {n}", f"{n}.jpg") for n in range(4)]
    mixed = save_set(folder, "held_mixed", [record("held bad", "cut.jpg"), *held_out])
    clean = save_set(folder, "held_clean", held_out)
    skip, frozen = "data.on_bad_sample=skip", f"modules.vision.freeze={runs_ahead}"
    records = [*bad[:4], *_good(), *bad[4:]]
    code, _, skipped = run("mixed", records, skip, frozen, evaluation=mixed, language=(2, 1))
    assert code == 0
    code, _, expected = run("clean", _good(), frozen, evaluation=clean, language=(2, 1))
    assert code == 0
    assert _losses(skipped) == _losses(expected)
    evaluations = [(each / "evaluations.jsonl").read_text() for each in (skipped, expected)]
    assert evaluations[0] == evaluations[1]
    lines = [json.loads(line) for line in (skipped / "metrics.jsonl").open()]
    listed = [each["reason"] for line in lines for each in line["bad_samples"]]
    assert len(listed) == lines[-1]["num_bad_samples"] == len(_ALL)
    for _, reason in _ALL.values():
        assert sum(reason in each for each in listed) == 1
    all_bad = (skipped / "bad_samples.jsonl").read_text().splitlines()
    assert len(all_bad) == len(_ALL) + 1 and "sample 'held bad'" in all_bad[-1]
    assert not (expected / "bad_samples.jsonl").exists()
    logged = (skipped / "run.log").read_text()
    for reason in (_ALL[kind][1] for kind in _WHEN_DECODED):
        assert (
            sum(reason in line and " is taken out: train," in line for line in logged.split("\n"))
            == 1
        )


def test_more_bad_samples_than_allowed_end_the_run(run: Run) -> None:
    bad = [each for each, _ in _ALL.values()]
    limit = f"data.max_bad_samples={len(_IN_INDEX) + 1}"
    code, message, output = run("many", [*_good(), *bad], "data.on_bad_sample=skip", limit)
    assert code == 1
    assert f"are bad, more than data.max_bad_samples={len(_IN_INDEX) + 1}" in message
    listed = (output / "bad_samples.jsonl").read_text().splitlines()
    assert len(listed) > len(_IN_INDEX) + 1
    *_, last = (output / "run.log").read_text().splitlines()
    assert "ERROR group=- rank=- step=- the run ends: DataError: " in last
