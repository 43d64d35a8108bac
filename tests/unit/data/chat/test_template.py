"""Only what the assistant says is learned, whatever the chat template prints around it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_train.data.chat.conversation import Turn
from disagg_train.data.chat.template import ChatTemplate, plain_template
from disagg_train.errors import ConfigError, DataError
from tests.unit.data.chat.making import (
    CHATML,
    SPECIAL,
    THINKING,
    TRIMMING,
    llava,
    open_chat,
    save,
    save_tokenizer,
)

_TEXT = st.text(st.sampled_from("ab \n<|>you{}é"), max_size=12)
_VARIABLES = {"eos_token": "<|im_end|>"}


def _template(source: str) -> ChatTemplate:
    return ChatTemplate(source, _VARIABLES, SPECIAL)


def _turns(*contents: str) -> list[Turn]:
    return [Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(contents)]


def _said(template: ChatTemplate, *contents: str) -> list[str]:
    found = template.render(_turns(*contents))
    return [found.text[start:stop] for start, stop in found.answers]


@given(st.lists(_TEXT, min_size=1, max_size=3), st.data())
def test_an_answer_is_its_content_and_the_end_of_its_turn(
    answers: list[str], data: st.DataObject
) -> None:
    contents = [text for answer in answers for text in (data.draw(_TEXT), answer)]
    assert _said(_template(CHATML), *contents) == [f"{answer}<|im_end|>" for answer in answers]


@given(st.lists(_TEXT, min_size=1, max_size=3), st.data())
def test_spaces_that_a_template_trims_are_not_learned(
    answers: list[str], data: st.DataObject
) -> None:
    contents = [text for answer in answers for text in (data.draw(_TEXT), answer)]
    assert [said.strip() for said in _said(_template(TRIMMING), *contents)] == [
        f"{answer.strip()}<|im_end|>".strip() for answer in answers
    ]


def test_a_thinking_block_that_the_template_adds_is_learned_where_it_stands() -> None:
    said = _said(_template(THINKING), "a", "first", "b", "second")
    assert said == ["first<|im_end|>", "<think>\n\n</think>\n\nsecond<|im_end|>"]


def test_thoughts_of_the_only_answer_are_learned() -> None:
    said = _said(_template(THINKING), "a", "<think>\nhm\n</think>\n\nfirst")
    assert said == ["<think>\nhm\n</think>\n\nfirst<|im_end|>"]


def test_thoughts_that_a_template_drops_are_refused() -> None:
    with pytest.raises(DataError, match="answer of turn 2 differently once more turns follow"):
        _said(_template(THINKING), "a", "<think>\nhm\n</think>\n\nfirst", "b", "second")


@pytest.mark.parametrize("source", [CHATML, THINKING, TRIMMING, plain_template(False)])
def test_the_end_of_a_turn_is_known(source: str) -> None:
    assert _template(source).end_of_turn() == "<|im_end|>"


def test_a_template_that_prints_the_date_prints_one_date() -> None:
    dated = "{{ strftime_now('%d %b %Y') }} {% for m in messages %}{{ m.content }}{% endfor %}"
    assert _template(dated).render(_turns("a", "b")).text == "26 Jul 2024 ab"


def test_what_a_template_refuses_is_a_bad_sample() -> None:
    refusing = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="refuses it: roles must alternate"):
        _said(_template(refusing), "a", "b")


def test_a_template_may_print_turns_in_another_order() -> None:
    reversing = (
        "{% for m in messages | reverse %}{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
    )
    assert _said(_template(reversing), "question", "answer") == ["answer<|im_end|>"]


@pytest.mark.parametrize(
    ("special", "text"),
    [
        (SPECIAL, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyou<|im_end|>\n"),
        (("<|im_end|>", "<|endoftext|>"), "user: hi<|im_end|>\nassistant: you<|im_end|>\n"),
    ],
)
def test_a_tokenizer_without_a_template_gets_a_plain_one(
    special: tuple[str, ...], text: str, tmp_path: Path
) -> None:
    name = save_tokenizer(tmp_path, None, special)
    source = open_chat(name, save(tmp_path, [llava("a", "hi", "you")]))
    sample = source.load(source.sizes("train")[0].key)
    decode = source.tokenizer.backend.decode
    assert decode(sample.token_ids_S.tolist(), skip_special_tokens=False) == text
    labels_S = sample.labels_S[sample.labels_S >= 0]
    assert decode(labels_S.tolist(), skip_special_tokens=False) == "you<|im_end|>"


def test_a_template_of_ones_own_takes_the_place_of_the_tokenizers(
    tmp_path: Path, tokenizer: str
) -> None:
    (tmp_path / "own.jinja").write_text("{% for m in messages %}>{{ m.content }}{% endfor %}")
    options = {"chat_template": str(tmp_path / "own.jinja")}
    source = open_chat(tokenizer, save(tmp_path, [llava("a", "hi", "you")]), **options)
    sample = source.load(source.sizes("train")[0].key)
    assert source.tokenizer.backend.decode(sample.token_ids_S.tolist()) == ">hi>you"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": None}, "name the folder or hub id of a tokenizer"),
        pytest.param(
            {"tokenizer": "nowhere/at-all"},
            "cannot load 'nowhere/at-all'",
            marks=pytest.mark.slow,  # asking the hub's library imports torch
        ),
        ({"image_token": "<nobody>"}, "the tokenizer has no token '<nobody>'"),
        ({"image_text": "no place"}, "write {} once"),
        ({"chat_template": "gone.jinja"}, "data.options.chat_template: .*No such file"),
        ({"max_tokens": "many"}, "data.options.max_tokens: .*got 'many'"),
        ({"tokens": 1}, "data.options.tokens: Extra inputs"),
        ({"sources": []}, "data.options.sources: "),
        ({"sources": [{"path": "a.json"}, {"path": "a.json"}]}, "listed more than once"),
    ],
)
def test_a_wrong_option_is_named(
    options: dict[str, object],
    message: str,
    tokenizer: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from disagg_train.data.chat.source import ChatSource

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    right = {"tokenizer": tokenizer, "sources": [save(tmp_path, [])]}
    with pytest.raises(ConfigError, match=message):
        ChatSource({}, **{**right, **options})
