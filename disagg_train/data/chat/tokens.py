"""Conversations -> fused sequences: tokens, labels, and the places of images and sounds."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from disagg_train.data.chat.conversation import MARKS, Conversation, Turn
from disagg_train.data.chat.options import ChatOptions
from disagg_train.data.chat.template import ChatTemplate, plain_template
from disagg_train.data.processors import Modality
from disagg_train.data.source import IGNORE
from disagg_train.errors import ConfigError, DataError

Ints = NDArray[np.int64]

_USUAL: Mapping[Modality, tuple[str, ...]] = {
    "image": (
        "<image>",
        "<|image_pad|>",
        "<|image|>",
        "<image_soft_token>",
        "<IMG_CONTEXT>",
        "[IMG]",
        "<|reserved_special_token_0|>",
    ),
    "audio": ("<audio>", "<|audio_pad|>", "<|AUDIO|>", "<|audio|>", "<|reserved_special_token_1|>"),
}


@dataclass(frozen=True)
class Fused:
    """A conversation as one sequence; S positions.

    Args:
        token_ids_S: tokens, every input's placeholder repeated once per token.
        labels_S: the token that follows where the assistant says it, else ``IGNORE``.
        positions: of each input's first token.
        answer: first position of the last answer, and the one past it.
    """

    token_ids_S: Ints
    labels_S: Ints
    positions: tuple[int, ...]
    answer: tuple[int, int]

    def held_out(self, max_new_tokens: int, padding: int) -> "Fused":
        """Return the sequence up to the last answer, with room that does not tell its length."""
        start, stop = self.answer
        length = start + max(stop - start, max_new_tokens)
        token_ids, labels = np.full(length, padding), np.full(length, IGNORE)
        token_ids[:stop] = self.token_ids_S[:stop]
        labels[start - 1 : stop - 1] = self.token_ids_S[start:stop]
        return Fused(token_ids, labels, self.positions, self.answer)


class ChatTokenizer:
    """A tokenizer with its chat template. Cheap to send to other processes.

    Args:
        backend: a ``tokenizers.Tokenizer``; it gets two tokens of ours for placeholders.
        template: of chats.
        placeholders: id that stands where an input's tokens will be.
        texts: what a placeholder's text becomes; {} is the input.
        padding: id behind a held-out answer.
        ends: ids that end an answer.
    """

    def __init__(
        self,
        backend: Any,
        template: ChatTemplate,
        placeholders: Mapping[Modality, int],
        texts: Mapping[Modality, str],
        padding: int,
        ends: Sequence[int],
    ) -> None:
        self.backend, self.template, self.placeholders = backend, template, placeholders
        self.texts, self.padding, self.ends = texts, padding, frozenset(ends)
        backend.add_special_tokens(list(MARKS.values()))
        self._marks = {m: backend.token_to_id(mark) for m, mark in MARKS.items()}

    @property
    def fingerprint(self) -> str:
        """A digest of everything that token counts depend on."""
        parts = [self.backend.to_str(), self.template.source, repr(self.template.variables)]
        parts += [repr(sorted(self.placeholders.items())), repr(sorted(self.texts.items()))]
        return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()

    def fuse(self, chat: Conversation, counts: Sequence[int]) -> Fused:
        """Return a conversation's fused sequence.

        Args:
            chat: the conversation.
            counts: tokens of each of its inputs, in order.

        Raises:
            DataError: the template refuses it, or its text holds tokens that stand for inputs.
        """
        rendered = self.template.render([self._with_texts(turn) for turn in chat.turns])
        cuts = sorted(start for start, _ in rendered.answers)
        ids_T, starts_T, stops_T = self._encode(rendered.text, cuts)
        said_T = np.zeros(len(ids_T), bool)
        for start, stop in rendered.answers:
            inside_T = (starts_T >= start) & (starts_T < stop) & (stops_T > start)
            last_T = inside_T & (stops_T <= stop)
            said_T |= last_T
        spoken = np.flatnonzero(last_T)
        if not len(spoken) or spoken[0] == 0:
            raise DataError("its last answer is empty, or stands first: there is nothing to learn")
        return self._expand(chat, ids_T, said_T, (int(spoken[0]), int(spoken[-1]) + 1), counts)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text before the first end of an answer."""
        ids = list(token_ids)
        stop = next((i for i, each in enumerate(ids) if each in self.ends), len(ids))
        return str(self.backend.decode(ids[:stop], skip_special_tokens=True))

    def _with_texts(self, turn: Turn) -> Turn:
        content = turn.content
        for modality, mark in MARKS.items():
            if mark in content:
                content = content.replace(mark, self.texts[modality].replace("{}", mark))
        return Turn(turn.role, content)

    def _encode(self, text: str, cuts: Sequence[int]) -> tuple[Ints, Ints, Ints]:
        """Return ids and the characters they stand for; no token reaches over a cut.

        A prompt ends at a cut: an answer must begin with the token it begins with there.
        """
        ids, starts, stops = _encoded(self.backend, text)
        torn = [cut for cut in cuts if ((starts < cut) & (stops > cut)).any()]
        if not torn:
            return ids, starts, stops
        edges = [0, *torn, len(text)]
        parts = []
        for first, last in zip(edges, edges[1:], strict=False):
            ids, starts, stops = _encoded(self.backend, text[first:last])
            parts.append((ids, starts + first, stops + first))
        found = [np.concatenate(column) for column in zip(*parts, strict=True)]
        return found[0], found[1], found[2]

    def _expand(
        self,
        chat: Conversation,
        ids_T: Ints,
        said_T: NDArray[np.bool_],
        answer: tuple[int, int],
        counts: Sequence[int],
    ) -> Fused:
        marks_T = np.isin(ids_T, list(self._marks.values()))
        found = [self._marks[each.modality] for each in chat.inputs]
        if ids_T[marks_T].tolist() != found:
            raise DataError("the chat template drops or moves placeholders of images or sounds")
        for modality in {each.modality for each in chat.inputs}:
            token = self.placeholders[modality]
            if token not in (self.padding, *self.ends) and (ids_T == token).any():
                raise DataError(f"its text holds the token that stands for {modality} inputs")
        repeats_T = np.ones(len(ids_T), np.int64)
        repeats_T[marks_T] = counts
        begins_T = np.cumsum(repeats_T) - repeats_T
        for modality, mark in self._marks.items():
            ids_T[ids_T == mark] = self.placeholders.get(modality, self.padding)
        token_ids = np.repeat(ids_T, repeats_T)
        said = np.repeat(said_T & ~marks_T, repeats_T)
        labels = np.full(len(token_ids), IGNORE)
        labels[:-1][said[1:]] = token_ids[1:][said[1:]]
        ends = np.append(begins_T, len(token_ids))
        return Fused(
            token_ids,
            labels,
            tuple(begins_T[marks_T].tolist()),
            (int(ends[answer[0]]), int(ends[answer[1]])),
        )


def load_tokenizer(options: ChatOptions) -> ChatTokenizer:
    """Return the tokenizer that the options name.

    Raises:
        ConfigError: it cannot be loaded, has no token of a given name, or no end of text.
    """
    loaded = _loaded(options.tokenizer)
    variables = {
        name: token for name, token in loaded.special_tokens_map.items() if isinstance(token, str)
    }
    backend = loaded.backend_tokenizer
    special = [
        token.content for token in backend.get_added_tokens_decoder().values() if token.special
    ]
    template = ChatTemplate(_template(options, loaded, special), variables, special)
    ends = {loaded.eos_token_id, backend.token_to_id(template.end_of_turn())} - {None}
    if not ends:
        raise ConfigError(
            f"data.options.tokenizer: {options.tokenizer!r} has no eos_token and its chat template "
            f"ends no turn; give a tokenizer with an eos_token"
        )
    padding = loaded.pad_token_id if loaded.pad_token_id is not None else min(ends)
    placeholders: dict[Modality, int] = {
        "image": _placeholder(backend, "image", options.image_token, padding),
        "audio": _placeholder(backend, "audio", options.audio_token, padding),
    }
    texts: dict[Modality, str] = {"image": options.image_text, "audio": options.audio_text}
    return ChatTokenizer(backend, template, placeholders, texts, padding, sorted(ends))


def _encoded(backend: Any, text: str) -> tuple[Ints, Ints, Ints]:
    found = backend.encode(text, add_special_tokens=False)
    offsets = np.array(found.offsets, np.int64).reshape(-1, 2)
    return np.array(found.ids, np.int64), offsets[:, 0], offsets[:, 1]


def _loaded(name: str) -> Any:
    """Load by the tokenizer's own file where there is one: it needs no torch, and starts fast."""
    try:
        if (Path(name) / "tokenizer.json").exists():
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(name)
        from transformers import AutoTokenizer

        found = AutoTokenizer.from_pretrained(name)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"data.options.tokenizer: cannot load {name!r}: {reason}") from None
    if not getattr(found, "is_fast", False):
        raise ConfigError(
            f"data.options.tokenizer: {name!r} tells no offsets; give one with a tokenizer.json"
        )
    return found


def _template(options: ChatOptions, loaded: Any, special: Sequence[str]) -> str:
    if options.chat_template is not None:
        try:
            return Path(options.chat_template).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"data.options.chat_template: {error}") from None
    found = loaded.chat_template
    if isinstance(found, dict):
        found = found.get("default")
    if isinstance(found, str):
        return found
    knows_chatml = {"<|im_start|>", "<|im_end|>"} <= set(special)
    if not knows_chatml and loaded.eos_token is None:
        raise ConfigError(
            f"data.options.tokenizer: {options.tokenizer!r} has neither a chat template nor an "
            f"eos_token; give data.options.chat_template"
        )
    return plain_template(knows_chatml)


def _placeholder(backend: Any, modality: Modality, wanted: str | None, padding: int) -> int:
    """Return the id put where an input's tokens go; the tokenizer may know none, any will do."""
    if wanted is not None:
        found = backend.token_to_id(wanted)
        if found is None:
            raise ConfigError(
                f"data.options.{modality}_token: the tokenizer has no token {wanted!r}; name one "
                f"that it has"
            )
        return int(found)
    known = (backend.token_to_id(token) for token in _USUAL[modality])
    return next((int(found) for found in known if found is not None), padding)
