"""Whatever the format: the same turns, the same inputs, loss on what the assistant says."""

import base64
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_train.data.chat import records
from disagg_train.data.chat.source import ChatSource
from disagg_train.data.index import check_sample
from disagg_train.errors import ConfigError, DataError
from tests.unit.data.chat.making import Patches, llava, open_chat, picture, save, sound

_QUESTION, _ANSWER = "<image>\nwhat? <audio>", "a red hat"
_PARTS = [{"type": "image"}, {"type": "text", "text": "\nwhat? "}, {"type": "audio"}]


def _json_list(folder: Path) -> dict[str, str]:
    record = llava("a", _QUESTION, _ANSWER, image="a.png", audio="a.wav")
    return save(folder, [record], a__png=picture(), a__wav=sound())


def _json_lines(folder: Path) -> dict[str, str]:
    _json_list(folder)
    record = llava("a", _QUESTION, _ANSWER, image=["a.png"], audio=["a.wav"])
    (folder / "set.jsonl").write_text("\n" + json.dumps(record) + "\n\n")
    return {"path": str(folder / "set.jsonl")}


def _openai(folder: Path) -> dict[str, str]:
    save(folder, [], a__flac=sound(kind="FLAC"))
    url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    image = {"type": "image_url", "image_url": {"url": url}}
    parts = [image, _PARTS[1], {**_PARTS[2], "audio": "a.flac"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": _ANSWER}]
    return save(folder, [{"id": "a", "messages": turns}])


def _row() -> dict[str, Any]:
    turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    image, audio = {"bytes": picture(), "path": None}, {"bytes": sound(), "path": "/gone.wav"}
    return {"id": "a", "messages": turns, "images": [image], "audio": audio}


def _saved_dataset(folder: Path) -> dict[str, str]:
    import datasets

    features = {"id": datasets.Value("string"), "images": [datasets.Image()]}
    turn = {"role": datasets.Value("string"), "content": datasets.Value("string")}
    sound_bytes = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    all_features = datasets.Features(features | {"messages": [turn], "audio": sound_bytes})
    datasets.Dataset.from_list([_row()], features=all_features).save_to_disk(folder / "set")
    return {"path": str(folder / "set")}


def _arrow(folder: Path) -> dict[str, str]:
    table = pa.Table.from_pylist([_row()])
    with pa.ipc.new_stream(folder / "set.arrow", table.schema) as file:
        file.write_table(table)
    return {"path": str(folder / "set.arrow")}


def _parquet(folder: Path) -> dict[str, str]:
    pq.write_table(pa.Table.from_pylist([_row()]), folder / "set.parquet")
    return {"path": str(folder / "set.parquet")}


def _shards(folder: Path) -> dict[str, str]:
    record = {"conversations": llava("a", _QUESTION, _ANSWER)["conversations"]}
    for number in range(2):
        with tarfile.open(folder / f"{number}.tar", "w") as shard:
            for name, content in (
                (f"x/{number}.json", json.dumps(record).encode()),
                (f"x/{number}.0.png", picture()),
                (f"x/{number}.wav", sound()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    return {"path": str(folder / "*.tar")}


def _webdataset(folder: Path) -> dict[str, str]:
    import webdataset

    record = {"conversations": llava("a", _QUESTION, _ANSWER)["conversations"]}
    with webdataset.TarWriter(str(folder / "0.tar")) as shard:
        shard.write({"__key__": "x", "json": record, "png": picture(), "wav": sound()})
    return {"path": str(folder), "format": "webdataset"}


def _slow(make: Any) -> Any:
    """Libraries that take seconds to be imported."""
    return pytest.param(make, marks=pytest.mark.slow)


_FORMATS = [_json_list, _json_lines, _openai, _arrow, _parquet, _shards]
_FORMATS += [_slow(_saved_dataset), _slow(_webdataset)]


@pytest.mark.parametrize("make", _FORMATS)
def test_a_sample_is_the_same_in_every_format(
    make: Callable[[Path], dict[str, str]], tmp_path: Path, tokenizer: str
) -> None:
    source = open_chat(tokenizer, make(tmp_path), index_folder=str(tmp_path / "index"))
    for size in source.sizes("train"):
        sample = source.load(size.key)
        check_sample(sample, size)
        assert _as_text(source, sample.token_ids_S) == (
            "<|im_start|>user\n<image><image>\nwhat? <audio><audio><audio><|im_end|>\n"
            "<|im_start|>assistant\na red hat<|im_end|>\n"
        )
        assert _as_text(source, sample.labels_S[sample.labels_S >= 0]) == "a red hat<|im_end|>"
        assert [image.shape for image in sample.inputs["vision"]] == [(4, 16, 3)]
        assert [frames.shape for frames in sample.inputs["speech"]] == [(300, 1)]
        assert size.input_tokens == {"vision": (4,), "speech": (6,)}
    assert len(source.sizes("train")) == (2 if make is _shards else 1)


def _as_text(source: ChatSource, token_ids: Any) -> str:
    return str(source.tokenizer.backend.decode(token_ids.tolist(), skip_special_tokens=False))


def test_text_alone_is_a_sample(tmp_path: Path, tokenizer: str) -> None:
    source = open_chat(tokenizer, save(tmp_path, [llava("t", "hello", "world")]))
    size = source.sizes("train")[0]
    assert not size.slots
    assert not source.load(size.key).inputs


def test_images_are_taken_in_the_order_of_their_placeholders(
    tmp_path: Path, tokenizer: str
) -> None:
    record = llava("two", "<image> or <image>?", "this", image=["b.png", "a.png"])
    files = {"a__png": picture(1, 10), "b__png": picture(3, 90)}
    source = open_chat(tokenizer, save(tmp_path, [record], **files))
    size = source.sizes("train")[0]
    assert [slot.count for slot in size.slots["vision"]] == [3, 1]
    reds = [image[0, 0, 0] for image in source.load(size.key).inputs["vision"]]
    assert reds == [90, 10]


def test_a_set_names_its_encoder_where_several_could(tmp_path: Path, tokenizer: str) -> None:
    options = save(tmp_path, [llava("a", "<image>", "x", image="a.png")], a__png=picture())
    processors = {"left": Patches(), "right": Patches()}
    chosen = {**options, "encoders": {"image": "right"}}
    source = open_chat(tokenizer, chosen, processors=processors)
    assert set(source.sizes("train")[0].slots) == {"right"}
    with pytest.raises(DataError, match="no module of the job takes them"):
        open_chat(tokenizer, options, processors=processors).sizes("train")
    wrong = {**options, "encoders": {"image": "speech"}}
    with pytest.raises(ConfigError, match=r"take image inputs are \['left', 'right'\]"):
        open_chat(tokenizer, wrong, processors=processors)


def test_what_surrounds_an_image_is_an_option(tmp_path: Path, tokenizer: str) -> None:
    options = save(tmp_path, [llava("a", "<image>", "x", image="a.png")], a__png=picture())
    source = open_chat(tokenizer, options, image_text="[{}]", image_token="<|endoftext|>")
    sample = source.load(source.sizes("train")[0].key)
    assert "user\n[<|endoftext|><|endoftext|>]<|im_end|>" in _as_text(source, sample.token_ids_S)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.json", "there is no file"),
        ("*.tar", "no shard matches"),
        (".", r"no \.arrow or \.parquet file below"),
        ("set.bin", "give `format: json`"),
    ],
)
def test_a_path_without_data_is_refused(
    name: str, message: str, tmp_path: Path, tokenizer: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_chat(tokenizer, {"path": str(tmp_path / name)})


def test_a_data_set_of_several_splits_asks_for_one(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "dataset_dict.json").write_text("{}")
    with pytest.raises(DataError, match="name one of them, such as"):
        open_chat(tokenizer, {"path": str(tmp_path)})


def test_a_compressed_shard_is_refused(tmp_path: Path, tokenizer: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as shard:
        shard.addfile(tarfile.TarInfo("a.json"))
    with pytest.raises(DataError, match="not compressed"):
        open_chat(tokenizer, {"path": str(tmp_path / "a.tar")}).sizes("train")


_VALUES = st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@given(
    st.lists(st.dictionaries(st.text(max_size=3), _VALUES, max_size=3), max_size=4),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_records_are_found_however_their_list_is_read(
    tmp_path_factory: pytest.TempPathFactory, made: list[Any], ascii_only: bool, indent: int | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "windows.json"
    path.write_text(json.dumps(made, ensure_ascii=ascii_only, indent=indent), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_WINDOW_BYTES", 7)
        found = records.JsonRecords(str(path)).scan(0)
    content = path.read_bytes()
    assert [json.loads(content[first : first + size]) for first, size in found.places] == made


def test_records_beyond_one_window_are_found(tmp_path: Path, tokenizer: str) -> None:
    made = [llava(f"é{i}", "hello " * 4000, f"{i}") for i in range(60)]
    (tmp_path / "set.json").write_text(json.dumps(made, ensure_ascii=False, indent=1))
    options = {"path": str(tmp_path / "set.json")}
    source = open_chat(tokenizer, options, max_tokens=10**6)
    found = [source.load(size.key).labels_S for size in source.sizes("train")]
    answers = [source.text(labels_S[labels_S >= 0].tolist()) for labels_S in found]
    assert answers == [str(i) for i in range(60)]
