"""One record of a data set -> turns of text and the inputs at their placeholders."""

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from disagg_train.data.processors import Modality
from disagg_train.errors import DataError

Record = Mapping[str, Any]
"""A record as its file holds it."""

MARKS: Mapping[Modality, str] = {
    "image": "<|disagg_train_image|>",
    "audio": "<|disagg_train_audio|>",
}
"""What stands for an input in a turn's text."""

_PLACEHOLDER = re.compile("<(image|audio)>")
_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant"}
_FIELDS: Mapping[Modality, tuple[str, ...]] = {
    "image": ("image", "images"),
    "audio": ("audio", "audios", "sound"),
}
_IDS = ("id", "__key__", "uuid", "sample_id")


@dataclass(frozen=True)
class Turn:
    """What one side says; ``MARKS`` stand where inputs go."""

    role: str
    content: str


@dataclass(frozen=True)
class Input:
    """An image or a recording: a path below the data root, or its bytes."""

    modality: Modality
    content: str | bytes

    @property
    def name(self) -> str:
        """Its path, empty for bytes."""
        return self.content if isinstance(self.content, str) else ""


@dataclass(frozen=True)
class Conversation:
    """A record, understood.

    Args:
        turns: up to the last one of the assistant.
        inputs: in the order of their marks.
    """

    turns: tuple[Turn, ...]
    inputs: tuple[Input, ...]


def record_id(record: Record) -> str:
    """Return the id that a record carries, empty where it has none."""
    return next((str(record[name]) for name in _IDS if record.get(name) is not None), "")


def conversation(record: Record) -> Conversation:
    """Return a record's turns and inputs.

    Raises:
        DataError: it is no conversation, nobody answers, or placeholders and inputs disagree.
    """
    waiting = {modality: list(_inputs(record, modality)) for modality in _FIELDS}
    given = {modality: len(found) for modality, found in waiting.items()}
    placed: list[Input] = []
    turns = [_turn(each, waiting, placed) for each in _messages(record)]
    for modality, left in waiting.items():
        placeholders = sum(each.modality == modality for each in placed)
        if left:
            raise DataError(
                f"it has {placeholders} <{modality}> placeholders but {given[modality]} "
                f"{modality} inputs; give one per placeholder"
            )
    while turns and turns[-1].role != "assistant":
        turns.pop()
    if not turns:
        raise DataError("it has no turn of the assistant, so nothing to learn")
    kept = sum(turn.content.count(mark) for turn in turns for mark in MARKS.values())
    return Conversation(tuple(turns), tuple(placed[:kept]))


def _messages(record: Record) -> Sequence[Record]:
    for field in ("conversations", "messages", "conversation"):
        found = record.get(field)
        if isinstance(found, dict):  # a list of records that a table keeps as columns
            names = list(found)
            found = [
                dict(zip(names, row, strict=True)) for row in zip(*found.values(), strict=True)
            ]
        if isinstance(found, list) and all(isinstance(each, dict) for each in found):
            return found
    raise DataError(
        "it has neither `conversations` ({from, value}) nor `messages` ({role, content})"
    )


def _turn(message: Record, waiting: Mapping[Modality, list[Input]], placed: list[Input]) -> Turn:
    role = message.get("from", message.get("role"))
    content = message.get("value", message.get("content"))
    if not isinstance(role, str) or not isinstance(content, str | list):
        raise DataError(f"a turn has role {role!r} and content of {type(content).__name__}")
    parts = [content] if isinstance(content, str) else content
    text = "".join(_part(part, waiting, placed) for part in parts)
    return Turn(_ROLES.get(role, role), _valid(text))


def _part(part: Any, waiting: Mapping[Modality, list[Input]], placed: list[Input]) -> str:
    """Return the text of a part of a turn, and take its inputs from those that wait."""

    def place(match: re.Match[str]) -> str:
        modality: Modality = "image" if match[1] == "image" else "audio"
        placed.append(_next(waiting, modality))
        return MARKS[modality]

    if isinstance(part, str):
        return _PLACEHOLDER.sub(place, part)
    kind = str(part.get("type")) if isinstance(part, dict) else ""
    if kind == "text" and isinstance(part.get("text"), str):
        return _PLACEHOLDER.sub(place, part["text"])
    for modality in MARKS:
        if kind in (modality, f"{modality}_url", f"input_{modality}"):
            own = _of_part(part, modality)
            placed.append(own or _next(waiting, modality))
            return MARKS[modality]
    raise DataError(f"a part of a turn has type {kind!r}; use text, image or audio")


def _next(waiting: Mapping[Modality, list[Input]], modality: Modality) -> Input:
    if not waiting[modality]:
        raise DataError(
            f"it has more <{modality}> placeholders than {modality} inputs; give one input per "
            f"placeholder"
        )
    return waiting[modality].pop(0)


def _of_part(part: Record, modality: Modality) -> Input | None:
    """Return the input that a part names itself."""
    for field in (modality, f"{modality}_url", "path", "url"):
        found = part.get(field)
        if isinstance(found, dict) and "url" in found:
            found = found["url"]
        if found is not None:
            return _input(found, modality)
    return None


def _inputs(record: Record, modality: Modality) -> Iterator[Input]:
    for field in _FIELDS[modality]:
        found = record.get(field)
        if found is None:
            continue
        for each in found if isinstance(found, list) else [found]:
            yield _input(each, modality)


def _input(value: Any, modality: Modality) -> Input:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value.startswith("data:"):
        value = _embedded(value)
    if not isinstance(value, str | bytes) or value == "":
        raise DataError(f"an {modality} input is {type(value).__name__}; give a path or bytes")
    return Input(modality, _valid(value) if isinstance(value, str) else value)


def _embedded(url: str) -> bytes:
    """Return the bytes of a `data:` URL, as chats with web services have them."""
    head, _, content = url.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError(head[:40])
        return base64.b64decode(content, validate=True)
    except ValueError as error:
        raise DataError(f"its data: URL is no base64: {error}") from None


def _valid(text: str) -> str:
    """Return the text; JSON can hold halves of characters, which nothing else takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"invalid Unicode: half a character at {error.start}") from None
    return text
