"""Conversations with images and sounds, from the formats that people have them in."""

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from disagg_train.data.chat.conversation import conversation
from disagg_train.data.chat.formats import folder_of, open_records
from disagg_train.data.chat.index import IndexPlace, fingerprint, open_index, writable_folder
from disagg_train.data.chat.measure import SetReader
from disagg_train.data.chat.options import ChatOptions, SourceOptions
from disagg_train.data.chat.roots import DataRoot
from disagg_train.data.chat.samples import (
    HeldOut,
    Samples,
    bad_samples,
    hold_out,
    refuse,
    sizes_of,
    where,
)
from disagg_train.data.chat.table import Table
from disagg_train.data.chat.tokens import ChatTokenizer, load_tokenizer
from disagg_train.data.processors import Modality, Processor
from disagg_train.data.source import Sample, Split
from disagg_train.errors import ConfigError, DataError
from disagg_train.metrics.records import BadSample
from disagg_train.planner.step_plan import SampleSize


@dataclass(frozen=True)
class _Set:
    """One set of samples: what reads it, where its index is, what it is called."""

    reader: SetReader
    place: IndexPlace


@dataclass(frozen=True)
class _Opened:
    """The indexes of all sets, and who belongs where.

    Args:
        tables: indexes, by set.
        splits: the usable samples of each split.
        bad: the samples of each split that cannot be used.
        keys: per split, the keys in ascending order, and the samples that they belong to.
    """

    tables: Sequence[Table]
    splits: Mapping[Split, Samples]
    bad: Mapping[Split, Sequence[BadSample]]
    keys: Mapping[Split, tuple[NDArray[np.uint64], NDArray[np.int64]]]


class ChatSource:
    """Multimodal conversations.

    Args:
        processors: of all encoders, by name.
        seed: unused; the order of samples is the sampler's.
        on_bad_sample: whether a sample that the index finds bad ends the run or is left out.
        options: see ``ChatOptions``.
    """

    def __init__(
        self,
        processors: Mapping[str, Processor],
        seed: int = 0,
        on_bad_sample: Literal["fail", "skip"] = "fail",
        **options: Any,
    ) -> None:
        del seed
        self.options = ChatOptions.of(options)
        self._encoders, self._on_bad_sample = tuple(sorted(processors)), on_bad_sample
        self._processors = processors
        self.tokenizer = load_tokenizer(self.options)
        self._sets = [
            make_set(each, self.options, self.tokenizer, processors) for each in self.options.sets
        ]
        self._cut = HeldOut(self.options.max_new_tokens, self.options.max_tokens)
        self._opened: _Opened | None = None
        self._is_current = False
        self._opening = threading.Lock()

    @property
    def bad_samples(self) -> Sequence[BadSample]:
        """Samples that the index left out, with their ids and reasons."""
        opened = self._open()
        return (*opened.bad["train"], *opened.bad["evaluation"])

    def sizes(self, split: Split) -> Sequence[SampleSize]:
        """Return the sizes of a split, after the index is brought up to date.

        Raises:
            DataError: a sample of either split cannot be used and ``on_bad_sample`` is `fail`, or
                two have one key.
        """
        opened = self._open(current=True)
        if self._on_bad_sample == "fail":
            refuse((*opened.bad["train"], *opened.bad["evaluation"]))
        weights = [each.weight for each in self.options.sets]
        cut = self._cut if split == "evaluation" else None
        return sizes_of(opened.splits[split], opened.tables, weights, self._encoders, cut)

    def load(self, key: int) -> Sample:
        """Return one sample, decoded; nothing of it is kept.

        Raises:
            DataError: it cannot be used, or there is none of this key.
        """
        return self.load_part(key, self._encoders)

    def load_part(self, key: int, encoders: Collection[str]) -> Sample:
        """Return one sample with the inputs of some encoders; others are not even opened.

        Raises:
            DataError: it cannot be used, or there is none of this key.
        """
        opened = self._open()
        split, number, row = _find(opened, key)
        table, title = opened.tables[number], self._sets[number].place.title
        try:
            return self._load(key, split, self._sets[number].reader, table, row, encoders)
        except (DataError, OSError) as error:
            raise DataError(f"{where(table, row, title)}: {error}") from None

    def name_of(self, key: int) -> str:
        """Return what a sample is called in messages."""
        opened = self._open()
        _, number, row = _find(opened, key)
        return where(opened.tables[number], row, self._sets[number].place.title)

    def text(self, token_ids: Sequence[int]) -> str:
        """Return generated tokens as text, up to the end of the answer."""
        return self.tokenizer.decode(token_ids)

    def _load(
        self,
        key: int,
        split: Split,
        reader: SetReader,
        table: Table,
        row: int,
        encoders: Collection[str],
    ) -> Sample:
        place = int(table["first"][row]), int(table["second"][row])
        chat = conversation(reader.records.read(int(table["file"][row]), place)[0])
        known = table.list_of("inputs", row)
        if len(known) != len(chat.inputs):
            raise DataError("it changed after its index was built; start the run again")
        fused = reader.fuse(chat, known["count"].tolist())
        if split == "evaluation":
            fused = fused.held_out(self._cut.room, self.tokenizer.padding)
        inputs: dict[str, list[NDArray[np.float32]]] = {}
        for each in chat.inputs:
            encoder = reader.encoder(each.modality)
            if encoder not in encoders:
                continue
            with reader.open(each) as file:
                try:
                    inputs.setdefault(encoder, []).append(self._processors[encoder].load(file))
                except DataError as error:
                    raise DataError(f"{each.name!r}: {error}" if each.name else error) from None
        start = fused.answer[0]
        return Sample(key, fused.token_ids_S, fused.labels_S, inputs, answer_start=start)

    def _open(self, current: bool = False) -> _Opened:
        """Return the opened indexes.

        Args:
            current: look once at every image's and sound's file, else take what an index says.
        """
        with self._opening:
            if self._opened is None or (current and not self._is_current):
                self._is_current = current
                workers = self.options.index_workers
                self._opened = self._split(
                    [
                        open_index(s.reader, s.place, self._encoders, workers, not current)
                        for s in self._sets
                    ]
                )
            return self._opened

    def _split(self, tables: Sequence[Table]) -> _Opened:
        """Say which samples are trained on and which are held out."""
        trained = range(len(self.options.sources))
        titles = [each.place.title for each in self._sets]
        train = Samples.usable(tables, trained)
        bad = [each for n in trained for each in bad_samples(tables[n], titles[n])]
        bad_held_out: list[BadSample] = []
        if self.options.held_out_set:
            last = len(tables) - 1
            held_out = Samples.usable(tables, [last])
            held_out = held_out.where(self._cut.fits(held_out, tables))
            bad_held_out = bad_samples(tables[last], titles[last], self._cut)
        else:
            chosen = hold_out(train, tables, self.options.num_held_out, self._cut)
            held_out, train = train.where(chosen), train.where(~chosen)
        splits: dict[Split, Samples] = {"train": train, "evaluation": held_out}
        keys = {split: _in_key_order(samples, tables) for split, samples in splits.items()}
        _differ([found for found, _ in keys.values()])
        return _Opened(tables, splits, {"train": bad, "evaluation": bad_held_out}, keys)


def make_set(
    source: SourceOptions,
    options: ChatOptions,
    tokenizer: ChatTokenizer,
    processors: Mapping[str, Processor],
) -> _Set:
    """Return the reader of a set and the place of its index.

    Raises:
        ConfigError: a processor cannot be told from another one, or an encoder is unknown.
        DataError: there is nothing at the set's path.
    """
    encoders = _encoders(source, processors)
    folder = Path(source.root) if source.root else folder_of(source.path)
    reader = SetReader(
        open_records(source),
        DataRoot(str(folder)),
        encoders,
        processors,
        tokenizer,
        options.max_tokens,
        options.max_image_pixels,
    )
    title = source.name or source.path
    described = {name: repr(processors[name]) for name in encoders.values()}
    for name, text in described.items():
        if " at 0x" in text:
            raise ConfigError(
                f"the processor of {name!r} is {text}; give it a __repr__ that says its sizes, by "
                f"which an index knows what it was built for"
            )
    limits = [options.max_tokens, options.max_image_pixels]
    names = sorted(processors)
    digest = fingerprint(
        tokenizer.fingerprint, limits, encoders, described, names, str(folder), source.path, title
    )
    stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(source.path).name)
    file = writable_folder(options.index_folder, folder) / f"{stem}-{digest[:12]}.index"
    return _Set(reader, IndexPlace(file, digest, title))


def _encoders(source: SourceOptions, processors: Mapping[str, Processor]) -> dict[Modality, str]:
    """Return which encoder takes which modality: the one that is named, or the only one."""
    found: dict[Modality, str] = {}
    modalities: tuple[Modality, ...] = ("image", "audio")
    for modality in modalities:
        able = sorted(name for name, each in processors.items() if each.modality == modality)
        named = source.encoders.get(modality)
        if named is not None and named not in able:
            raise ConfigError(
                f"data.options.sources: encoders.{modality} of {source.path!r} is {named!r}; the "
                f"modules that take {modality} inputs are {able}"
            )
        if named or len(able) == 1:
            found[modality] = named or able[0]
    return found


def _find(opened: _Opened, key: int) -> tuple[Split, int, int]:
    """Return a key's split, set and row."""
    for split, (keys, order) in opened.keys.items():
        at = int(np.searchsorted(keys, np.uint64(key)))
        if at < len(keys) and int(keys[at]) == key:
            samples = opened.splits[split]
            return split, int(samples.set_N[order[at]]), int(samples.row_N[order[at]])
    bad = [each for found in opened.bad.values() for each in found if each.key == key]
    raise DataError(bad[0].reason if bad else f"the data set has no sample of key {key}")


def _in_key_order(
    samples: Samples, tables: Sequence[Table]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    keys = samples.column(tables, "key")
    order = np.argsort(keys, kind="stable")
    return keys[order], order


def _differ(keys: Sequence[NDArray[np.uint64]]) -> None:
    together = np.sort(np.concatenate(keys))
    if len(together) and (together[1:] == together[:-1]).any():
        raise DataError(
            "two samples have one key; give one of their sets another `name` in data.options"
        )
