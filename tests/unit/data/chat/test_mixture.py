"""Several sets in one: weights, splits, held-out answers."""

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from disagg_train.data.index import check_sample
from disagg_train.data.sampler import batches
from disagg_train.errors import ConfigError, DataError
from tests.unit.data.chat.making import llava, open_chat, picture, save, sound


def _sets(folder: Path, *counts: int) -> list[dict[str, str]]:
    made = []
    for number, count in enumerate(counts):
        below = folder / str(number)
        below.mkdir()
        question = ("<image> what?", "hello", "<audio> what?")[number]
        inputs = ({"image": "a.png"}, {}, {"audio": "a.wav"})[number]
        records = [llava(f"{i}", question, "x" * (i + 1), **inputs) for i in range(count)]
        made.append(save(below, records, a__png=picture(), a__wav=sound()))
    return made


def test_an_epoch_visits_sets_by_their_weights(tmp_path: Path, tokenizer: str) -> None:
    first, second, third = _sets(tmp_path, 40, 40, 10)
    weights = {"a": 2.0, "b": 0.5, "c": 1.0}
    named = zip((first, second, third), weights.items(), strict=True)
    sets = [{**options, "name": name, "weight": weight} for options, (name, weight) in named]
    sizes = open_chat(tokenizer, *sets).sizes("train")
    kind_of = {size.key: next(iter(size.slots), "text") for size in sizes}
    visits = list(islice(batches(sizes, 0, 1), 330))
    seen = Counter(kind_of[size.key] for (size,) in visits)
    assert abs(seen["vision"] - 3 * 80) <= 12
    assert abs(seen["text"] - 3 * 20) <= 12
    assert abs(seen["speech"] - 3 * 10) <= 4


def test_as_many_samples_as_asked_for_are_held_out(tmp_path: Path, tokenizer: str) -> None:
    source = open_chat(tokenizer, *_sets(tmp_path, 12, 12), evaluation=7)
    train = {size.key for size in source.sizes("train")}
    held_out = {size.key for size in source.sizes("evaluation")}
    assert len(train) == 17
    assert len(held_out) == 7
    assert not train & held_out


def test_which_samples_are_held_out_stays_when_others_go(tmp_path: Path, tokenizer: str) -> None:
    (options,) = _sets(tmp_path, 30)
    before = {s.key for s in open_chat(tokenizer, options, evaluation=10).sizes("evaluation")}
    records = [llava(f"{i}", "<image> what?", "x" * (i + 1), image="a.png") for i in range(24)]
    save(tmp_path / "0", records)
    source = open_chat(tokenizer, options, evaluation=10)
    after = {size.key for size in source.sizes("evaluation")}
    left = {size.key for size in source.sizes("train")} | after
    assert before & left <= after


def test_a_held_out_set_is_not_trained_on(tmp_path: Path, tokenizer: str) -> None:
    first, second = _sets(tmp_path, 3, 4)
    source = open_chat(tokenizer, first, evaluation=second)
    assert [len(source.sizes(split)) for split in ("train", "evaluation")] == [3, 4]


def test_every_sample_is_what_its_index_says(tmp_path: Path, tokenizer: str) -> None:
    sets = _sets(tmp_path, 8, 8, 8)
    source = open_chat(tokenizer, *sets, evaluation=9, max_new_tokens=5)
    for split in ("train", "evaluation"):
        for size in source.sizes(split):
            check_sample(source.load(size.key), size)


def test_a_held_out_sample_does_not_tell_its_length(tmp_path: Path, tokenizer: str) -> None:
    sets = _sets(tmp_path, 6)
    source = open_chat(tokenizer, *sets, evaluation=6, max_new_tokens=20)
    assert len({size.sequence_tokens for size in source.sizes("evaluation")}) == 1
    for size in source.sizes("evaluation"):
        sample = source.load(size.key)
        answer = source.text(sample.token_ids_S[sample.answer_start :].tolist())
        assert set(answer) == {"x"}
        assert len(sample.token_ids_S) == sample.answer_start + 20


def test_a_held_out_sample_without_room_is_bad(tmp_path: Path, tokenizer: str) -> None:
    first, second = _sets(tmp_path, 1, 1)
    limits = {"max_tokens": 60, "max_new_tokens": 50}
    source = open_chat(tokenizer, first, evaluation=second, **limits)
    with pytest.raises(DataError, match=r"room for an answer \(data.options.max_new_tokens=50\)"):
        source.sizes("train")
    skipping = open_chat(tokenizer, first, evaluation=second, on_bad_sample="skip", **limits)
    assert not skipping.sizes("evaluation")
    assert len(skipping.bad_samples) == 1


def test_sets_of_one_path_are_refused(tmp_path: Path, tokenizer: str) -> None:
    (options,) = _sets(tmp_path, 1)
    with pytest.raises(ConfigError, match="listed more than once"):
        open_chat(tokenizer, options, evaluation=options)


def test_a_set_that_moved_keeps_its_keys_by_its_name(tmp_path: Path, tokenizer: str) -> None:
    (options,) = _sets(tmp_path, 5)
    before = [s.key for s in open_chat(tokenizer, {**options, "name": "n"}).sizes("train")]
    (tmp_path / "0").rename(tmp_path / "moved")
    moved = {"path": str(tmp_path / "moved" / "set.json"), "name": "n"}
    assert [size.key for size in open_chat(tokenizer, moved).sizes("train")] == before
