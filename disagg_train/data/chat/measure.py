"""The size of one sample, or why it cannot be used: from headers and text, never from pixels."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from disagg_train.data.chat.conversation import Conversation, Input, conversation
from disagg_train.data.chat.headers import read_size
from disagg_train.data.chat.records import Records, digest
from disagg_train.data.chat.roots import GONE, DataRoot, Stamp
from disagg_train.data.chat.table import Column, Table, nested, texts
from disagg_train.data.chat.tokens import ChatTokenizer, Fused
from disagg_train.data.processors import Modality, Processor, TokenCount
from disagg_train.errors import DataError

EMBEDDED: Stamp = (0, 0)
"""Stamp of an input whose bytes are part of its record."""


@dataclass(frozen=True)
class SetReader:
    """Reads one set's samples, to measure or to train on. It can be sent to other processes.

    Args:
        records: of the set.
        root: that images and sounds are below.
        encoders: which encoder takes what.
        processors: of every encoder.
        tokenizer: of the LLM.
        max_tokens: of a fused sequence.
        max_image_pixels: that an image may declare.
    """

    records: Records
    root: DataRoot
    encoders: Mapping[Modality, str]
    processors: Mapping[str, Processor]
    tokenizer: ChatTokenizer
    max_tokens: int
    max_image_pixels: int

    def open(self, each: Input) -> BinaryIO:
        """Open an input.

        Raises:
            DataError: it is not there, or may not be read.
        """
        if isinstance(each.content, str):
            return self.root.open(each.content)
        if not each.content:
            raise DataError(f"an {each.modality} input is empty (0 bytes)")
        return io.BytesIO(each.content)

    def encoder(self, modality: Modality) -> str:
        """Return the encoder that takes a modality.

        Raises:
            DataError: the job has none.
        """
        if modality not in self.encoders:
            raise DataError(f"it has {modality} inputs, but no module of the job takes them")
        return self.encoders[modality]

    def fuse(self, chat: Conversation, counts: Sequence[int]) -> Fused:
        """Return a conversation's fused sequence.

        Raises:
            DataError: it cannot be made, or is too long.
        """
        fused = self.tokenizer.fuse(chat, counts)
        if len(fused.token_ids_S) > self.max_tokens:
            raise DataError(
                f"it has {len(fused.token_ids_S)} tokens, {sum(counts)} of them of its inputs; "
                f"data.options.max_tokens is {self.max_tokens}"
            )
        return fused

    def count(self, each: Input) -> TokenCount:
        """Return an input's tokens.

        Raises:
            DataError: its header cannot be read, or the encoder cannot take it.
        """
        processor = self.processors[self.encoder(each.modality)]
        with self.open(each) as file:
            try:
                size = read_size(file, each.modality, self.max_image_pixels)
                return processor.count(size)
            except DataError as error:
                raise DataError(f"{each.name!r}: {error}" if each.name else str(error)) from None


@dataclass
class _Sample:
    """What is found out about one sample; ``reason`` says why it is bad."""

    name: str = ""
    identity: int = 0
    tokens: int = 0
    targets: int = 0
    answer: tuple[int, int] = (0, 0)
    reason: str = ""
    inputs: tuple[Input, ...] = ()
    counts: tuple[TokenCount, ...] = ()
    positions: tuple[int, ...] = ()
    stamps: tuple[Stamp, ...] = ()


def measure(
    reader: SetReader, files: NDArray[np.int64], places: NDArray[np.int64], names: Sequence[str]
) -> Table:
    """Return the index's rows of some samples.

    Args:
        reader: of their set.
        files: per sample, its file.
        places: ``[samples, 2]`` in their files.
        names: of all encoders; rows name them by number.
    """
    found = [
        _measured(reader, int(file), (int(first), int(second)))
        for file, (first, second) in zip(files, places, strict=True)
    ]
    return _table(found, {m: names.index(name) for m, name in reader.encoders.items()})


def _measured(reader: SetReader, file: int, place: tuple[int, int]) -> _Sample:
    sample = _Sample()
    try:
        record, sample.name = reader.records.read(file, place)
        sample.identity = digest(sample.name.encode(errors="surrogatepass"))
        chat = conversation(record)
        sample.inputs = chat.inputs
        sample.stamps = tuple(_stamp(reader.root, each) for each in chat.inputs)
        sample.counts = tuple(reader.count(each) for each in chat.inputs)
        fused = reader.fuse(chat, [count.tokens for count in sample.counts])
    except (DataError, OSError) as error:
        sample.reason = str(error)
        return sample
    sample.tokens, sample.answer = len(fused.token_ids_S), fused.answer
    sample.targets, sample.positions = int((fused.labels_S >= 0).sum()), fused.positions
    return sample


def _stamp(root: DataRoot, each: Input) -> Stamp:
    return root.stamp(each.name) if each.name else EMBEDDED


def _table(samples: Sequence[_Sample], numbers: Mapping[Modality, int]) -> Table:
    columns: dict[str, Column] = {
        "identity": np.array([s.identity for s in samples], np.uint64),
        "tokens": np.array([s.tokens for s in samples], np.int32),
        "targets": np.array([s.targets for s in samples], np.int32),
        "answer_start": np.array([s.answer[0] for s in samples], np.int32),
        "answer_stop": np.array([s.answer[1] for s in samples], np.int32),
    }
    lists = {
        "name": texts([s.name for s in samples]),
        "reason": texts([s.reason for s in samples]),
        "inputs": nested([len(s.inputs) for s in samples], _inputs(samples, numbers)),
    }
    return Table(columns, lists)


def _inputs(samples: Sequence[_Sample], numbers: Mapping[Modality, int]) -> Table:
    """Return all samples' inputs; those of a bad sample count for nothing but their stamps."""
    inputs = [each for sample in samples for each in sample.inputs]
    stamps = [stamp for s in samples for stamp in s.stamps or [GONE] * len(s.inputs)]
    none = TokenCount(0, 0)
    counts = [c for s in samples for c in (s.counts if not s.reason else [none] * len(s.inputs))]
    positions = [p for s in samples for p in (s.positions if not s.reason else [0] * len(s.inputs))]
    return Table(
        {
            "encoder": np.array([numbers.get(each.modality, -1) for each in inputs], np.int16),
            "position": np.array(positions, np.int32),
            "count": np.array([count.tokens for count in counts], np.int32),
            "computed": np.array([count.input_tokens for count in counts], np.int32),
            "changed_ns": np.array([stamp[0] for stamp in stamps], np.int64),
            "bytes": np.array([stamp[1] for stamp in stamps], np.int64),
        },
        {"path": texts([each.name for each in inputs])},
    )
