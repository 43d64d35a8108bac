"""Every kind of bad data is found without decoding it, named, and skipped where asked."""

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from disagg_train.errors import DataError
from tests.unit.data.chat.making import llava, open_chat, picture, save, sound


def _png_of(width: int, height: int) -> bytes:
    """Return a tiny file that declares many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _one(**more: Any) -> dict[str, Any]:
    return llava("bad", "<image>", "x", **more)


_BAD = [
    (_one(image="gone.png"), "'gone.png': No such file or directory"),
    (_one(image="empty.png"), r"'empty.png' is empty \(0 bytes\)"),
    (_one(image="cut.jpg"), "'cut.jpg': its image header cannot be read"),
    (_one(image="bomb.png"), "'bomb.png': a decompression bomb: it declares"),
    (_one(image="huge.png"), "'huge.png': a decompression bomb: it declares"),
    (_one(image="odd.png"), "'odd.png': 1 patches are not even"),
    (_one(image="../out.png"), "leaves the data root"),
    (_one(image="sub/../../out.png"), "leaves the data root"),
    (_one(image="/etc/hostname"), "leaves the data root"),
    (_one(image="http://host/a.png"), "leaves the data root"),
    (_one(image="link.png"), "is a link that leaves the data root"),
    (_one(image="linked/out.png"), "is a link that leaves the data root"),
    (_one(image="data:image/png;base64,?"), "its data: URL is no base64"),
    (_one(image="data:text,hi"), "its data: URL is no base64: data:text"),
    (_one(image="."), "is not a file"),
    (_one(image="a.png\0"), "leaves the data root"),
    (_one(), "more <image> placeholders than image inputs"),
    (_one(image=["a.png", "a.png"]), "1 <image> placeholders but 2 image inputs"),
    (_one(image=3), "an image input is int"),
    (llava("bad", "no placeholder", "x", image="a.png"), "0 <image> placeholders but 1 image"),
    (llava("bad", "<audio>", "x", audio="a.png"), "'a.png': its sound header cannot be read"),
    (llava("bad", "<audio>", "x", audio="silent.wav"), "'silent.wav': it holds no sound"),
    (llava("bad", "hello " * 200, "x"), "tokens, 0 of them of its inputs; .*max_tokens is 128"),
    (llava("bad", "half \ud800", "x"), "invalid Unicode"),
    (llava("bad", "<|disagg_train_image|>", "x"), "drops or moves placeholders"),
    (_one(image="a.png", extra=1) | {"conversations": "no"}, "neither `conversations`"),
    ({"id": "bad", "conversations": [{"from": "human", "value": "hi"}]}, "no turn of the assis"),
    ({"id": "bad", "messages": [{"role": "user", "content": [{"type": "video"}]}]}, "'video'"),
    ({"id": "bad", "messages": [{"role": None, "content": "x"}]}, "a turn has role None"),
    (["bad"], "it is a JSON list, not a record"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outside: Path = tmp_path_factory.mktemp("data")
    (outside / "out.png").write_bytes(picture())
    root = outside / "root"
    (root / "sub").mkdir(parents=True)
    (root / "link.png").symlink_to(outside / "out.png")
    (root / "inside.png").symlink_to(root / "a.png")
    (root / "linked").symlink_to(outside)
    files = {
        "a.png": picture(),
        "empty.png": b"",
        "cut.jpg": picture(kind="JPEG")[:60],
        "bomb.png": _png_of(50_000, 50_000),
        "huge.png": _png_of(1100, 1000),
        "odd.png": _png_of(4, 4),
        "silent.wav": sound(0),
    }
    for name, content in files.items():
        (root / name).write_bytes(content)
    return root


def _open(folder: Path, tokenizer: str, records: list[Any], **options: Any) -> Any:
    limits = {"max_tokens": 128, "max_image_pixels": 10**6}
    return open_chat(tokenizer, save(folder, records), **limits, **options)


@pytest.mark.parametrize(("record", "message"), _BAD)
def test_a_bad_sample_is_named_with_its_reason(
    record: Any, message: str, folder: Path, tokenizer: str
) -> None:
    source = _open(folder, tokenizer, [llava("good", "hello", "world"), record])
    with pytest.raises(DataError, match=f"1 samples cannot be used.*\n.*{message}") as caught:
        source.sizes("train")
    if isinstance(record, dict):
        assert "set.json, record 2, sample 'bad'" in str(caught.value)


def test_skip_leaves_all_of_them_out_and_lists_them(folder: Path, tokenizer: str) -> None:
    records = [llava("good", "hello", "world"), *(record for record, _ in _BAD)]
    source = _open(folder, tokenizer, records, on_bad_sample="skip")
    left = list(source.sizes("train"))
    assert left == list(_open(folder, tokenizer, records[:1]).sizes("train"))
    assert len(source.bad_samples) == len(_BAD)
    for bad in source.bad_samples:
        with pytest.raises(DataError) as caught:
            source.load(bad.key)
        assert str(caught.value) == bad.reason


def test_the_error_lists_the_first_few(folder: Path, tokenizer: str) -> None:
    source = _open(folder, tokenizer, [record for record, _ in _BAD])
    with pytest.raises(DataError, match=f"and {len(_BAD) - 5} more") as caught:
        source.sizes("train")
    assert len(str(caught.value).splitlines()) == 7


def test_a_link_inside_the_root_is_followed(folder: Path, tokenizer: str) -> None:
    source = _open(folder, tokenizer, [_one(image="inside.png")])
    assert source.load(source.sizes("train")[0].key).inputs["vision"][0].shape == (4, 16, 3)


def test_a_truncated_body_is_found_when_it_is_loaded(folder: Path, tokenizer: str) -> None:
    (folder / "body.jpg").write_bytes(picture(40, kind="JPEG")[:-30])
    source = _open(folder, tokenizer, [_one(image="body.jpg")])
    key = source.sizes("train")[0].key
    with pytest.raises(DataError, match="sample 'bad': 'body.jpg': cannot be decoded"):
        source.load(key)


def test_a_file_that_went_away_since_is_found_when_it_is_loaded(
    folder: Path, tokenizer: str
) -> None:
    (folder / "soon.png").write_bytes(picture())
    source = _open(folder, tokenizer, [_one(image="soon.png")])
    key = source.sizes("train")[0].key
    (folder / "soon.png").unlink()
    with pytest.raises(DataError, match="sample 'bad': 'soon.png': No such file"):
        source.load(key)


def test_a_pipe_is_not_waited_for(folder: Path, tokenizer: str) -> None:
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(DataError, match=r"'pipe.png' is not a file"):
        _open(folder, tokenizer, [_one(image="pipe.png")]).sizes("train")


def test_bad_lines_are_bad_samples_of_their_own(tmp_path: Path, tokenizer: str) -> None:
    good = json.dumps(llava("a", "hello", "world")).encode()
    path = tmp_path / "set.jsonl"
    path.write_bytes(
        b"\n".join([good, b'{"id": "\xff"}', b'{"id": 1', good.replace(b'"a"', b'"b"')])
    )
    source = open_chat(tokenizer, {"path": str(path)}, on_bad_sample="skip")
    assert len(source.sizes("train")) == 2
    reasons = [bad.reason for bad in source.bad_samples]
    assert "record 2: invalid UTF-8 at its byte 8" in reasons[0]
    assert "record 3: it is no JSON" in reasons[1]


@pytest.mark.parametrize("content", ['[{"id": 1},', '[{"id": 1', '[{"id": 1}, nonsense]'])
def test_a_list_that_breaks_off_is_refused(content: str, tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "set.json").write_text(content)
    source = open_chat(tokenizer, {"path": str(tmp_path / "set.json")}, on_bad_sample="skip")
    with pytest.raises(DataError, match="breaks off or is no JSON near byte"):
        source.sizes("train")


def test_a_key_of_no_sample_is_refused(folder: Path, tokenizer: str) -> None:
    with pytest.raises(DataError, match="no sample of key 5"):
        _open(folder, tokenizer, [llava("good", "hello", "world")]).load(5)
