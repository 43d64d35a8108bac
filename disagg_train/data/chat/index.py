"""The sizes index of one set of samples: built once, then only what changed is measured again.

A row is measured again when its record or one of its images or sounds changed: files are known
by the time of their last change and their bytes. What else sizes depend on (tokenizer, chat
template, processors, options) is in the fingerprint, and so in the index's file name.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from disagg_train.data.chat.measure import EMBEDDED, SetReader
from disagg_train.data.chat.parallel import measure_all
from disagg_train.data.chat.roots import Stamp
from disagg_train.data.chat.table import Table, concatenate, load, save
from disagg_train.data.sampler import mix
from disagg_train.errors import DataError

VERSION = 1
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class IndexPlace:
    """Where an index is kept.

    Args:
        file: of the index.
        fingerprint: of all that its sizes depend on, but for the files themselves.
        title: what the set is called in messages: its path.
    """

    file: Path
    fingerprint: str
    title: str


@dataclass(frozen=True)
class _Records:
    """All records of a set, and where an old index knows them.

    Args:
        rows: columns file, place and digest.
        known: per record, its row in the old index, -1 where it has none.
    """

    rows: Table
    known: Ints


def open_index(
    reader: SetReader,
    place: IndexPlace,
    names: Sequence[str],
    workers: int | None = None,
    trust_inputs: bool = False,
) -> Table:
    """Return the index of a set, brought up to date.

    Args:
        reader: of the set.
        place: of the index.
        names: of all encoders.
        workers: processes that measure; one per core where not given.
        trust_inputs: take an index as it is if only images or sounds may have changed. Ranks do:
            the driver has checked them, and a thousand ranks would ask the disk for the same.

    Raises:
        DataError: a file of records cannot be read.
    """
    old, header = _old(place)
    stamps = {file: list(_file_stamp(file)) for file in reader.records.files}
    unchanged = header.get("files") == stamps
    if old is not None and unchanged and trust_inputs:
        return old
    records = _found(reader, old, header, stamps)
    stale = records.known < 0
    if old is not None:
        stale |= _inputs_changed(reader, old)[records.known]
        if unchanged and not stale.any():
            return old
    table = _updated(reader, place, names, workers, old, records, stale)
    save(place.file, table, {"fingerprint": place.fingerprint, "files": stamps})
    return load(place.file)[0]


def fingerprint(*parts: Any) -> str:
    """Return a digest of plain values."""
    text = json.dumps([VERSION, *parts], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def writable_folder(wanted: str | None, root: Path) -> Path:
    """Return the folder for indexes: the wanted one, else below the data, else in the cache."""
    if wanted is not None:
        return Path(wanted)
    beside = root / ".disagg_train"
    if os.access(beside if beside.is_dir() else root, os.W_OK):
        return beside
    return Path.home() / ".cache" / "disagg_train"


def _old(place: IndexPlace) -> tuple[Table | None, dict[str, Any]]:
    try:
        table, header = load(place.file)
    except (OSError, ValueError):
        return None, {}
    if header.get("fingerprint") != place.fingerprint or not len(table):
        return None, {}
    return table, header


def _file_stamp(file: str) -> Stamp:
    try:
        found = Path(file).stat()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    return found.st_mtime_ns, found.st_size


def _found(
    reader: SetReader, old: Table | None, header: Mapping[str, Any], stamps: Mapping[str, Any]
) -> _Records:
    """Find all records; in files that did not change, where they were."""
    before = header.get("files", {})
    numbers = {file: number for number, file in enumerate(before)}
    digests: dict[int, int] = {}
    if old is not None and before != stamps:
        digests = {digest: row for row, digest in enumerate(old["digest"].tolist()) if digest}
    tables, known = [], []
    for number, file in enumerate(reader.records.files):
        if old is not None and before.get(file) == stamps[file]:
            rows = np.flatnonzero(old["file"] == numbers[file])
            columns = {name: old[name][rows] for name in ("first", "second", "digest")}
        else:
            found = reader.records.scan(number)
            rows = np.array([digests.get(d, -1) for d in found.digests.tolist()], np.int64)
            first, second = found.places.T
            columns = {"first": first, "second": second, "digest": found.digests}
        tables.append(Table({"file": np.full(len(rows), number, np.int32), **columns}))
        known.append(rows)
    return _Records(concatenate(tables), np.concatenate(known))


def _inputs_changed(reader: SetReader, old: Table) -> NDArray[np.bool_]:
    """Return, per row of an index, whether one of its images or sounds changed."""
    starts, inputs = old.lists["inputs"]
    changed = np.zeros(len(inputs) + 1, bool)
    stamps = zip(inputs["changed_ns"].tolist(), inputs["bytes"].tolist(), strict=True)
    for i, stamp in enumerate(stamps):
        if stamp != EMBEDDED:
            changed[i] = reader.root.stamp(inputs.text("path", i)) != stamp
    totals = np.concatenate([np.zeros(1, np.int64), np.cumsum(changed[:-1])])
    return np.diff(totals[starts]) > 0


def _updated(
    reader: SetReader,
    place: IndexPlace,
    names: Sequence[str],
    workers: int | None,
    old: Table | None,
    records: _Records,
    stale: NDArray[np.bool_],
) -> Table:
    again = np.flatnonzero(stale)
    rows = records.rows.take(again)
    places = np.stack([rows["first"], rows["second"]], axis=1)
    measured = measure_all(reader, rows["file"], places, names, workers, place.title)
    order = records.known.copy()
    if old is not None:
        kept = Table({name: old[name] for name in measured.columns}, old.lists)
        order[again] = len(old) + np.arange(len(again))
        measured = concatenate([kept, measured])
    else:
        order[again] = np.arange(len(again))
    table = measured.take(order)
    is_bad = table.counts("reason") > 0
    keys = _keys(place.title, table["identity"], is_bad, records.rows)
    return table.with_columns(**records.rows.columns, key=keys)


def _keys(
    title: str, identity: NDArray[np.uint64], is_bad: NDArray[np.bool_], rows: Table
) -> NDArray[np.uint64]:
    """Return 63-bit keys: hashes of (path, id), and of the count among equal ids.

    Bad samples are counted last, so that the others have the keys they have without them. A
    record that cannot be read has no id; its place stands for it, since it is in no order.
    """
    base = np.uint64(int(fingerprint(title)[:16], 16))
    places = mix(mix(rows["file"].astype(np.uint64)) ^ mix(rows["first"].astype(np.uint64)))
    places = mix(places ^ rows["second"].astype(np.uint64))
    hashes = mix(mix(np.where(identity == 0, places, identity)) ^ base)
    order = np.lexsort((is_bad, hashes))
    in_order = hashes[order]
    begins = np.flatnonzero(np.append(True, in_order[1:] != in_order[:-1])[: len(order)])
    count = np.zeros(len(order), np.uint64)
    runs = np.diff(np.append(begins, len(order)))
    count[order] = np.arange(len(order)) - np.repeat(begins, runs)
    return np.where(count == 0, hashes, mix(hashes ^ mix(count))) >> np.uint64(1)
