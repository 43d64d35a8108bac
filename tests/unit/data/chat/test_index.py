"""The sizes index: built once, brought up to date by measuring only what changed."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from disagg_train.data.chat.source import ChatSource
from disagg_train.data.chat.table import Table, load, save, texts
from disagg_train.data.chat.tokens import ChatTokenizer
from disagg_train.errors import ConfigError, DataError
from tests.unit.data.chat import making
from tests.unit.data.chat.making import ENCODERS, Patches, llava, open_chat, picture


@dataclass
class Folder:
    """A set of samples on disk that tests change."""

    path: Path
    tokenizer: str

    def write(self, sizes: dict[str, int], order: list[str], times: int = 0) -> None:
        """Write an image per name, and the records that name them."""
        for name, size in sizes.items():
            file = self.path / f"{name}.png"
            file.write_bytes(picture(size) if size else b"")
            os.utime(file, ns=(10**18 + size, 10**18 + size))
        records = [llava(n, "<image> what?", f"{n} hat", image=f"{n}.png") for n in order]
        making.save(self.path, records)
        os.utime(self.path / "set.json", ns=(10**18 + times, 10**18 + times))

    def open(self, index: str = "index", **options: Any) -> tuple[ChatSource, Patches]:
        """Open the set with an encoder that remembers what it was asked."""
        patches = Patches()
        source = open_chat(
            self.tokenizer,
            {"path": str(self.path / "set.json")},
            processors={**ENCODERS, "vision": patches},
            **{"index_folder": str(self.path / index), "on_bad_sample": "skip", **options},
        )
        return source, patches

    def measured(self, **options: Any) -> int:
        """Return how many images a run looks at."""
        source, patches = self.open(**options)
        source.sizes("train")
        return len(patches.calls)


@pytest.fixture
def folder(tmp_path: Path, tokenizer: str) -> Folder:
    made = Folder(tmp_path, tokenizer)
    made.write({"a": 1, "b": 2, "c": 3}, ["a", "b", "c"])
    return made


def test_the_second_run_measures_nothing(folder: Folder) -> None:
    assert [folder.measured(), folder.measured()] == [3, 0]


def test_only_a_changed_image_is_measured_again(folder: Folder) -> None:
    folder.measured()
    folder.write({"b": 7}, ["a", "b", "c"])
    source, patches = folder.open()
    assert [size.tokens("vision") for size in source.sizes("train")] == [1, 7, 3]
    assert len(patches.calls) == 1


def test_only_new_records_are_measured(folder: Folder) -> None:
    folder.measured()
    folder.write({"d": 4}, ["d", "c", "a"], times=1)
    source, patches = folder.open()
    assert [size.tokens("vision") for size in source.sizes("train")] == [4, 3, 1]
    assert len(patches.calls) == 1


def test_a_bad_image_is_measured_again_once_it_is_mended(folder: Folder) -> None:
    folder.write({"b": 0}, ["a", "b", "c"])
    source, _ = folder.open()
    assert len(source.sizes("train")) == 2
    folder.write({"b": 2}, ["a", "b", "c"])
    assert folder.measured() == 1
    source, _ = folder.open()
    assert len(source.sizes("train")) == 3
    assert not source.bad_samples


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from("abcde"), st.integers(0, 5), max_size=4),
            st.lists(st.sampled_from("abcdef"), max_size=5),
        ),
        min_size=2,
        max_size=4,
    )
)
def test_an_index_brought_up_to_date_equals_a_new_one(
    folder: Folder, tmp_path_factory: pytest.TempPathFactory, changes: Any
) -> None:
    folder = replace(folder, path=tmp_path_factory.mktemp("set"))
    for times, (sizes, order) in enumerate(changes):
        folder.write(sizes, order, times)
        folder.measured()
    source, patches = folder.open()
    fresh, _ = folder.open(index="fresh")
    assert list(source.sizes("train")) == list(fresh.sizes("train"))
    assert source.bad_samples == fresh.bad_samples
    assert not patches.calls


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 99},
        {"max_image_pixels": 10**6},
        {"image_token": "<audio>"},
        {"image_text": "[{}]"},
    ],
)
def test_options_that_change_sizes_build_an_index_anew(
    options: dict[str, Any], folder: Folder
) -> None:
    folder.measured()
    assert folder.measured(**options) == 3


def test_options_that_change_no_size_keep_the_index(folder: Folder) -> None:
    folder.measured()
    assert folder.measured(max_new_tokens=3, evaluation=1) == 0


def test_a_broken_index_is_built_anew(folder: Folder) -> None:
    folder.measured()
    (file,) = (folder.path / "index").iterdir()
    whole = file.read_bytes()
    for broken in (b"", whole[: len(whole) // 2], b"junk" + whole, b"{}\n"):
        file.write_bytes(broken)
        assert folder.measured() == 3


def test_ranks_take_the_drivers_index_without_looking_at_images(folder: Folder) -> None:
    source, _ = folder.open()
    keys = [size.key for size in source.sizes("train")]
    folder.write({"b": 7}, ["a", "b", "c"])
    rank, patches = folder.open()
    rank.load(keys[0])
    assert not patches.calls


def test_an_index_lies_below_the_data_or_in_the_cache(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.measured(index_folder=None)
    assert list((folder.path / ".disagg_train").glob("set.json-*.index"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setenv("HOME", str(folder.path / "home"))
    assert folder.measured(index_folder=None) == 3
    assert list((folder.path / "home/.cache/disagg_train").glob("set.json-*.index"))


def test_keys_stay_when_other_samples_go(folder: Folder) -> None:
    before = {size.tokens("vision"): size.key for size in folder.open()[0].sizes("train")}
    folder.write({}, ["c", "a"], times=1)
    after = {size.tokens("vision"): size.key for size in folder.open()[0].sizes("train")}
    assert after == {tokens: before[tokens] for tokens in (1, 3)}


def test_samples_of_one_id_have_keys_of_their_own(folder: Folder) -> None:
    folder.write({}, ["a", "a", "b", "a"], times=1)
    keys = [size.key for size in folder.open()[0].sizes("train")]
    assert len(set(keys)) == 4
    assert max(keys) < 2**63


def test_a_bad_sample_takes_no_key_from_another_of_its_id(folder: Folder) -> None:
    good, bad = llava("a", "hello", "hat"), llava("a", "<image>", "hat")
    keys = []
    for records in ([good], [bad, good]):
        making.save(folder.path, records)
        keys.append([size.key for size in folder.open()[0].sizes("train")])
    assert keys[0] == keys[1]


def test_records_without_ids_are_known_by_their_content(folder: Folder) -> None:
    def keys(*answers: str) -> dict[int, int]:
        records = [llava("", "hi", answer) for answer in answers]
        for record in records:
            del record["id"]
        (folder.path / "set.json").write_text(json.dumps(records))
        return {size.key: size.target_tokens for size in folder.open()[0].sizes("train")}

    assert keys("x" * 5) == {key: n for key, n in keys("", "x" * 5).items() if n > 1}


def test_a_processor_must_say_what_it_is(folder: Folder) -> None:
    class Nameless(Patches):
        __repr__ = object.__repr__

    options = {"path": str(folder.path / "set.json")}
    with pytest.raises(ConfigError, match="give it a __repr__ that says its sizes"):
        open_chat(folder.tokenizer, options, processors={"vision": Nameless()})


def test_people_see_how_far_it_is(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.measured()
    assert not capsys.readouterr().err
    monkeypatch.setenv("FORCE_COLOR", "1")
    folder.measured(index_folder=str(folder.path / "other"))
    shown = capsys.readouterr().err
    assert "set.json" in shown
    assert "3/3" in shown


@pytest.mark.slow
def test_processes_find_what_one_process_finds(folder: Folder) -> None:
    names = [f"{letter}{i}" for letter in "abc" for i in range(300)]
    folder.write({name: 1 + i % 5 for i, name in enumerate(names)}, names)
    alone, _ = folder.open(index="alone", index_workers=1)
    together, _ = folder.open(index="together", index_workers=2)
    assert list(alone.sizes("train")) == list(together.sizes("train"))


@pytest.mark.slow
def test_processes_that_end_early_are_an_error(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChatTokenizer, "__reduce__", lambda _: (os._exit, (3,)), raising=False)
    with pytest.raises(DataError, match="index_workers: 1"):
        folder.measured(index_workers=2)


@settings(max_examples=30)
@given(st.lists(st.lists(st.text(max_size=4), max_size=3), max_size=5), st.data())
def test_a_table_comes_back_from_its_file(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], data: st.DataObject
) -> None:
    words = [word for row in rows for word in row]
    starts = np.cumsum([0, *map(len, rows)])
    inner = Table({"length": np.array([len(w) for w in words], np.int32)}, {"word": texts(words)})
    table = Table({"number": np.arange(len(rows))}, {"words": (starts, inner)})
    path = tmp_path_factory.mktemp("tables") / "a.index"
    save(path, table, {"some": "header"})
    loaded, header = load(path)
    assert header == {"some": "header"}
    chosen = data.draw(st.lists(st.sampled_from(range(len(rows))), max_size=6)) if rows else []
    taken = loaded.take(np.array(chosen, np.int64))
    for i, row in enumerate(chosen):
        found = taken.list_of("words", i)
        assert [found.text("word", k) for k in range(len(found))] == rows[row]
        assert found["length"].tolist() == [len(word) for word in rows[row]]
