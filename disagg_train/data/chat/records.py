"""Files of records, read one at a time by place. Nothing is unpickled, nothing decoded."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from disagg_train.data.chat.conversation import Record, record_id
from disagg_train.errors import DataError

Ints = NDArray[np.int64]
_WINDOW_BYTES = 1 << 20


@dataclass(frozen=True)
class Found:
    """Where a file's records are.

    Args:
        places: ``[records, 2]``, as ``Records.read`` takes them.
        digests: of each record's content; 0 where only reading it would tell.
    """

    places: Ints
    digests: NDArray[np.uint64]


class Records(Protocol):
    """A set of records over one or more files."""

    files: tuple[str, ...]
    """Its files, in order."""

    def scan(self, file: int) -> Found:
        """Find a file's records.

        Raises:
            DataError: the file cannot be read.
        """

    def read(self, file: int, place: tuple[int, int]) -> tuple[Record, str]:
        """Return a record, and its id: its own, else one that stays while the file does.

        Raises:
            DataError: it cannot be read.
        """


def digest(content: bytes) -> int:
    """Return 64 bits of a content's hash, never 0."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") or 1


class JsonRecords:
    """A JSON list of records, or one JSON record per line.

    Args:
        path: of the file. A place is (first byte, number of bytes).
    """

    def __init__(self, path: str) -> None:
        self.files: tuple[str, ...] = (path,)

    def scan(self, file: int) -> Found:
        """Find all records; lines that are no JSON are found too, and are bad when read."""
        places, digests = [], []
        try:
            with Path(self.files[file]).open("rb") as opened:
                listed = _first_byte(opened) == b"["
                for start, content in (_list if listed else _lines)(opened):
                    places.append((start, len(content)))
                    digests.append(digest(content))
        except (OSError, ValueError) as error:
            raise DataError(f"{self.files[file]}: {error}") from None
        return Found(np.array(places, np.int64).reshape(-1, 2), np.array(digests, np.uint64))

    def read(self, file: int, place: tuple[int, int]) -> tuple[Record, str]:
        """Return one record, and its id or, where it has none, a digest."""
        with Path(self.files[file]).open("rb") as opened:
            opened.seek(place[0])
            content = opened.read(place[1])
        record = json_record(content)
        return record, record_id(record) or f"{digest(content):016x}"


def json_record(content: bytes) -> Mapping[str, Any]:
    """Return the record that some JSON holds.

    Raises:
        DataError: it is not UTF-8, no JSON, or no record.
    """
    try:
        found = json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise DataError(f"invalid UTF-8 at its byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"it is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"it is a JSON {type(found).__name__}, not a record")
    return found


def _first_byte(opened: BinaryIO) -> bytes:
    first = opened.read(_WINDOW_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    opened.seek(0)
    return first


def _lines(opened: BinaryIO) -> Iterator[tuple[int, bytes]]:
    place = 0
    for line in opened:
        content = line.strip(b" \t\r\n\xef\xbb\xbf" if place == 0 else b" \t\r\n")
        if content:
            yield place + line.index(content), content
        place += len(line)


def _list(opened: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the elements of a JSON list with their places, a window at a time.

    The window is read as Latin-1, in which characters are bytes: JSON's own signs are ASCII,
    and whether a record is UTF-8 is then a matter of that record.
    """
    decode = json.JSONDecoder().raw_decode
    base, window = 0, opened.read(_WINDOW_BYTES).decode("latin-1")
    at = window.index("[") + 1
    while True:
        while at < len(window) and window[at] in " \t\r\n,":
            at += 1
        if at < len(window) and window[at] == "]":
            return
        try:
            _, end = decode(window, at)
            yield base + at, window[at:end].encode("latin-1")
            at = end
        except (json.JSONDecodeError, RecursionError) as error:
            more = opened.read(max(_WINDOW_BYTES, len(window) - at)).decode("latin-1")
            if not more:
                raise ValueError(
                    f"its list breaks off or is no JSON near byte {base + at}: "
                    f"{getattr(error, 'msg', error)}"
                ) from None
            base, window, at = base + at, window[at:] + more, 0
