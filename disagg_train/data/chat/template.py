"""A chat template, and where in its text the assistant speaks.

The template is rendered once per sequence of roles with marks for contents; what stands between
the marks tells where each answer begins and ends. Every conversation is then held against the
template's own text. Where a template looks into contents (thinking blocks), answers are found
turn by turn: the text before an answer must be what the template prints to ask for it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from disagg_train.data.chat.conversation import Turn
from disagg_train.errors import DataError

Span = tuple[int, int]
"""First character and the one past the last."""

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
"""In front of templates, some of which print today's date: a sample is the same on every day."""
_MARK = re.compile("\ue000([0-9]+)\ue001")


def plain_template(knows_chatml: bool) -> str:
    """Return the template of a tokenizer that has none."""
    return _CHATML if knows_chatml else _PLAIN


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    Args:
        text: with the marks of its inputs.
        answers: what the assistant says, end of turn included, in order.
    """

    text: str
    answers: tuple[Span, ...]


@dataclass(frozen=True)
class _Skeleton:
    """What a template prints around the contents of turns of given roles.

    Args:
        between: text before, between and after the contents.
        order: the turns in the order of printing.
        before: per turn, the characters in front of its content that the assistant says too.
        after: the same behind its content.
    """

    between: tuple[str, ...]
    order: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass
class ChatTemplate:
    """Turns conversations into text.

    Args:
        source: the template, in Jinja.
        variables: special tokens by name, as templates use them.
        special_tokens: texts of the tokens that are no text.
    """

    source: str
    variables: Mapping[str, str]
    special_tokens: Sequence[str]
    _skeletons: dict[tuple[str, ...], _Skeleton | None] = field(default_factory=dict)

    def render(self, turns: Sequence[Turn]) -> Rendered:
        """Return a conversation as text, and where the assistant speaks.

        Raises:
            DataError: the template refuses it, or prints an answer in a way that cannot be told.
        """
        text = self._text(turns)
        roles = tuple(turn.role for turn in turns)
        if roles not in self._skeletons:
            self._skeletons[roles] = self._skeleton(roles)
        skeleton = self._skeletons[roles]
        raw = [turn.content for turn in turns]
        if skeleton is not None:
            for contents in (raw, [content.strip() for content in raw]):
                found = _filled(skeleton, roles, contents)
                if found.text == text:
                    return found
        return self._turn_by_turn(text, turns)

    def end_of_turn(self) -> str:
        """Return the special token that ends an answer, empty where there is none."""
        found = self.render([Turn("user", "x"), Turn("assistant", "y")])
        answer = found.text[slice(*found.answers[-1])]
        return next((token for token in self.special_tokens if answer.endswith(token)), "")

    def _text(self, turns: Sequence[Turn], ask: bool = False) -> str:
        from transformers.utils import chat_template_utils

        render: Any = chat_template_utils.render_jinja_template
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            texts, _ = render(
                [messages],
                chat_template=_DATE + self.source,
                add_generation_prompt=ask,
                **self.variables,
            )
        except Exception as error:  # templates raise what they like
            raise DataError(f"the chat template refuses it: {error}") from None
        return str(texts[0])

    def _skeleton(self, roles: tuple[str, ...]) -> _Skeleton | None:
        """Return None where the template does not print every content once."""
        text = self._text([Turn(role, f"\ue000{i}\ue001") for i, role in enumerate(roles)])
        between = tuple(_MARK.split(text)[::2])
        order = tuple(int(number) for number in _MARK.findall(text))
        if sorted(order) != list(range(len(roles))):
            return None
        question = self._question()
        before, after = [0] * len(roles), [0] * len(roles)
        for place, turn in enumerate(order):
            before[turn] = _said_before(between[place], question)
            after[turn] = self._said_after(between[place + 1])
        return _Skeleton(between, order, tuple(before), tuple(after))

    def _question(self) -> str:
        """Return what the template prints to ask for an answer."""
        asked = [Turn("user", "x")]
        without, with_question = self._text(asked), self._text(asked, ask=True)
        return with_question[len(without) :] if with_question.startswith(without) else ""

    def _said_after(self, text: str) -> int:
        """Return the length of the end of turn that ``text`` begins with."""
        tokens = "|".join(re.escape(t) for t in sorted(self.special_tokens, key=len, reverse=True))
        match = re.match(rf"\s*(?:{tokens})", text) if tokens else None
        match = match or re.match(r"\s*", text)
        return match.end() if match else 0

    def _turn_by_turn(self, text: str, turns: Sequence[Turn]) -> Rendered:
        answers = []
        for i, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            asked, answered = self._text(turns[:i], ask=True), self._text(turns[: i + 1])
            if not (text.startswith(answered) and answered.startswith(asked)):
                raise DataError(
                    f"the chat template prints the answer of turn {i + 1} differently once more "
                    f"turns follow (it may drop thinking blocks), so its tokens cannot be told; "
                    f"make that turn the last one, or give data.options.chat_template"
                )
            stop = len(answered.rstrip())
            ends = answered[:stop].endswith(tuple(self.special_tokens) or ("\0",))
            answers.append((len(asked), stop if ends else len(answered)))
        return Rendered(text, tuple(answers))


def _said_before(text: str, question: str) -> int:
    """Return the length of the tail of ``text`` that follows the question for an answer."""
    if question and question in text:
        return len(text) - text.rfind(question) - len(question)
    return len(text) - len(text.rstrip()) if not question else 0


def _filled(skeleton: _Skeleton, roles: Sequence[str], contents: Sequence[str]) -> Rendered:
    text = skeleton.between[0]
    answers = []
    for turn, following in zip(skeleton.order, skeleton.between[1:], strict=True):
        start, stop = len(text) - skeleton.before[turn], len(text) + len(contents[turn])
        if roles[turn] == "assistant":
            answers.append((start, stop + skeleton.after[turn]))
        text += contents[turn] + following
    return Rendered(text, tuple(answers))
