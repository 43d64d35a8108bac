"""Fused sequences: a place per image token, labels that follow, answers with room."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_train.data.chat.conversation import MARKS, Conversation, Input, Turn
from disagg_train.data.chat.options import ChatOptions
from disagg_train.data.chat.tokens import ChatTokenizer, load_tokenizer
from disagg_train.data.source import IGNORE
from disagg_train.errors import DataError
from tests.unit.data.chat.making import llava, open_chat, picture, save, save_tokenizer

_PIECES = st.sampled_from(["what ", "a red", "\n\n", " hat", "é你", MARKS["image"], MARKS["audio"]])


@st.composite
def chats(draw: st.DrawFn) -> tuple[Conversation, list[int]]:
    contents = draw(st.lists(st.lists(_PIECES, min_size=1, max_size=5), min_size=1, max_size=3))
    turns, inputs = [], []
    for pieces in contents:
        marks = [m for piece in pieces for m, mark in MARKS.items() if piece == mark]
        inputs += [Input(modality, b"") for modality in marks]
        turns += [Turn("user", "".join(pieces)), Turn("assistant", draw(st.sampled_from("abc")))]
    counts = [draw(st.integers(1, 4)) for _ in inputs]
    return Conversation(tuple(turns), tuple(inputs)), counts


@pytest.fixture(scope="module")
def chat_tokenizer(tokenizer: str) -> ChatTokenizer:
    return load_tokenizer(ChatOptions.of({"tokenizer": tokenizer, "sources": [{"path": "x"}]}))


@given(chats())
def test_every_token_of_an_input_has_a_place(
    chat_tokenizer: ChatTokenizer, drawn: tuple[Conversation, list[int]]
) -> None:
    chat, counts = drawn
    fused = chat_tokenizer.fuse(chat, counts)
    for modality, token in chat_tokenizer.placeholders.items():
        held = [
            position
            for each, start, count in zip(chat.inputs, fused.positions, counts, strict=True)
            for position in range(start, start + count)
            if each.modality == modality
        ]
        assert np.flatnonzero(fused.token_ids_S == token).tolist() == held


@given(chats())
def test_labels_are_the_tokens_that_follow_and_what_the_assistant_says(
    chat_tokenizer: ChatTokenizer, drawn: tuple[Conversation, list[int]]
) -> None:
    chat, counts = drawn
    fused = chat_tokenizer.fuse(chat, counts)
    at = np.flatnonzero(fused.labels_S != IGNORE)
    assert (fused.labels_S[at] == fused.token_ids_S[at + 1]).all()
    said = chat_tokenizer.backend.decode(fused.labels_S[at].tolist(), skip_special_tokens=False)
    assert said == "".join(f"{t.content}<|im_end|>" for t in chat.turns if t.role == "assistant")


@given(chats(), st.integers(1, 9))
def test_a_held_out_sample_is_cut_after_its_answer_which_has_room(
    chat_tokenizer: ChatTokenizer, drawn: tuple[Conversation, list[int]], room: int
) -> None:
    fused = chat_tokenizer.fuse(*drawn)
    held_out = fused.held_out(room, chat_tokenizer.padding)
    start, stop = fused.answer
    assert len(held_out.token_ids_S) == start + max(room, stop - start)
    assert (held_out.token_ids_S[:stop] == fused.token_ids_S[:stop]).all()
    labels = held_out.labels_S[held_out.labels_S != IGNORE]
    assert chat_tokenizer.decode(labels.tolist()) == drawn[0].turns[-1].content


def test_an_answer_begins_with_a_token_of_its_own(chat_tokenizer: ChatTokenizer) -> None:
    """Or its first token would have to be guessed from half of it."""
    chat = Conversation((Turn("user", "hi"), Turn("assistant", "\nhello")), ())
    fused = chat_tokenizer.fuse(chat, [])
    asked = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    prompt = chat_tokenizer.backend.encode(asked, add_special_tokens=False).ids
    assert fused.token_ids_S[: fused.answer[0]].tolist() == prompt


def test_text_ends_with_the_turn(chat_tokenizer: ChatTokenizer) -> None:
    encode = chat_tokenizer.backend.encode
    ids = encode("a hat<|im_end|>\nmore", add_special_tokens=False).ids
    assert chat_tokenizer.decode(ids) == "a hat"
    assert chat_tokenizer.decode(ids[:1]) == "a"


def test_text_that_holds_the_image_token_is_refused(tmp_path: Path) -> None:
    name = save_tokenizer(tmp_path, special=("<|im_end|>", "<|endoftext|>", "<|image_pad|>"))
    record = llava("a", "<image> <|image_pad|>", "x", image="a.png")
    source = open_chat(name, save(tmp_path, [record], a__png=picture()))
    with pytest.raises(DataError, match="its text holds the token that stands for image inputs"):
        source.sizes("train")


def test_a_tokenizer_without_an_image_token_serves_too(tmp_path: Path) -> None:
    name = save_tokenizer(tmp_path, special=("<|im_end|>", "<|endoftext|>"))
    record = llava("a", "<image> hm", "x", image="a.png")
    source = open_chat(name, save(tmp_path, [record], a__png=picture(5)))
    size = source.sizes("train")[0]
    slot = size.slots["vision"][0]
    token_ids_S = source.load(size.key).token_ids_S
    assert set(token_ids_S[slot.position : slot.position + slot.count]) == {1}
    assert token_ids_S.max() < 340
