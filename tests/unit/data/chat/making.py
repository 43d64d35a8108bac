"""What the tests of chat data are made of: a tokenizer, encoders, pictures, sounds, records."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from disagg_train.data.chat.source import ChatSource
from disagg_train.data.processors import Modality, TokenCount
from disagg_train.errors import DataError

PATCH, RATE = 4, 800

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = (
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}{% for m in messages %}"
    "{% set content = m.content %}{% set thought = '' %}"
    "{% if m.role == 'assistant' and '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}"
    "<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    "{{ content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen3's: thoughts are printed in the last turn alone."""
TRIMMING = (
    "<|endoftext|>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} "
    "[/INST]{% else %} {{ m.content | trim }}<|im_end|>{% endif %}{% endfor %}"
)
"""As Mistral's: contents lose their spaces, and nothing asks for an answer."""

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<audio>")


def save_tokenizer(folder: Path, template: str | None = CHATML, special: Any = SPECIAL) -> str:
    """Save a small byte-level tokenizer."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=list(special), initial_alphabet=alphabet
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(["what is this? a red hat. \n\n hello world\n\n"] * 9, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    return str(folder)


@dataclass(frozen=True)
class Patches:
    """Takes images whose sides are multiples of 4; two patches are one token."""

    modality: Modality = "image"
    calls: list[tuple[int, ...]] = field(default_factory=list, repr=False, compare=False)

    def count(self, size: tuple[int, ...]) -> TokenCount:
        self.calls.append(size)
        patches = size[0] // PATCH * (size[1] // PATCH)
        if patches % 2:
            raise DataError(f"{patches} patches are not even")
        return TokenCount(patches, patches // 2)

    def load(self, file: BinaryIO) -> NDArray[np.float32]:
        try:
            return np.asarray(Image.open(file).convert("RGB"), np.float32)
        except OSError as error:
            raise DataError(f"cannot be decoded: {error}") from None


@dataclass(frozen=True)
class Frames:
    """A token per 100 samples."""

    modality: Modality = "audio"

    def count(self, size: tuple[int, ...]) -> TokenCount:
        return TokenCount(size[0] // 50, size[0] // 100)

    def load(self, file: BinaryIO) -> NDArray[np.float32]:
        return np.asarray(soundfile.read(file)[0], np.float32)[:, None]


ENCODERS = {"vision": Patches(), "speech": Frames()}


def picture(tokens: int = 2, colour: int = 200, kind: str = "PNG") -> bytes:
    """Return an image file of as many tokens."""
    file = BytesIO()
    Image.new("RGB", (2 * PATCH * tokens, PATCH), (colour, 0, 0)).save(file, kind)
    return file.getvalue()


def sound(tokens: int = 3, kind: str = "WAV") -> bytes:
    """Return a sound file of as many tokens."""
    file = BytesIO()
    soundfile.write(file, np.zeros(100 * tokens), RATE, format=kind)
    return file.getvalue()


def llava(name: str, question: str, answer: str, **more: Any) -> dict[str, Any]:
    """Return a record of one question as LLaVA has it."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": name, "conversations": turns, **more}


def save(folder: Path, records: Sequence[Any], **files: bytes) -> dict[str, str]:
    """Write a JSON list and files (`a__png` is a.png); return the options of the set."""
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    (folder / "set.json").write_text(json.dumps(records))
    return {"path": str(folder / "set.json")}


def open_chat(tokenizer: str, *sources: Mapping[str, Any], **options: Any) -> ChatSource:
    """Return a source of sets, with the encoders of the tests."""
    processors = options.pop("processors", ENCODERS)
    return ChatSource(processors, tokenizer=tokenizer, sources=list(sources), **options)
