"""WebDataset shards: tar files whose neighbouring members of one name make a sample.

A sample's members lie side by side, so its place is one run of bytes, itself a tar.
"""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from disagg_train.data.chat.conversation import Record
from disagg_train.data.chat.records import Found, json_record
from disagg_train.data.processors import Modality
from disagg_train.errors import DataError

_ENDINGS: dict[Modality, frozenset[str]] = {
    "image": frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm"}),
    "audio": frozenset({"wav", "flac", "ogg", "mp3"}),
}


class TarRecords:
    """Tar shards; a sample is a .json and, in the order of its placeholders, images and sounds.

    Args:
        files: the shards, not compressed. A place is (first byte, number of bytes).
    """

    def __init__(self, files: tuple[str, ...]) -> None:
        self.files = files

    def scan(self, file: int) -> Found:
        """Find all samples from the members' headers alone."""
        places: list[tuple[int, int]] = []
        newest = None
        for name, start, stop in _members(self.files[file]):
            if name == newest:
                places[-1] = (places[-1][0], stop - places[-1][0])
            else:
                places.append((start, stop - start))
            newest = name
        return Found(np.array(places, np.int64).reshape(-1, 2), np.zeros(len(places), np.uint64))

    def read(self, file: int, place: tuple[int, int]) -> tuple[Record, str]:
        """Return a sample with its images' and sounds' bytes, and its name by shard and key."""
        path = self.files[file]
        with Path(path).open("rb") as opened:
            opened.seek(place[0])
            content = opened.read(place[1])
        record: dict[str, Any] = {}
        found: dict[Modality, list[bytes]] = {"image": [], "audio": []}
        key = ""
        try:
            with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as members:
                for member in members:
                    key, ending = _split(member.name)
                    opened_member = members.extractfile(member) if member.isreg() else None
                    if opened_member is not None:
                        _add(record, found, ending, opened_member.read())
        except tarfile.TarError as error:
            raise DataError(f"its shard is broken: {error}") from None
        record |= {str(modality): values for modality, values in found.items() if values}
        return record, f"{Path(path).name}/{key}"


def _add(
    record: dict[str, Any], found: dict[Modality, list[bytes]], ending: str, content: bytes
) -> None:
    if ending == "json":
        record.update(json_record(content))
    for modality, endings in _ENDINGS.items():
        if ending.rpartition(".")[2] in endings:
            found[modality].append(content)


def _members(path: str) -> Iterator[tuple[str, int, int]]:
    """Yield each regular member's sample, and the first and last byte of header and data."""
    block = tarfile.BLOCKSIZE
    try:
        with tarfile.open(path, mode="r:") as members:
            while (member := members.next()) is not None:
                stop = member.offset_data + -(-member.size // block) * block
                if member.isreg():
                    yield _split(member.name)[0], member.offset, stop
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{path}: {error}; shards are tar files that are not compressed") from None


def _split(name: str) -> tuple[str, str]:
    """Return a member's sample and its ending: `a/b.0.jpg` is (`a/b`, `0.jpg`)."""
    path = PurePosixPath(name)
    stem, _, ending = path.name.partition(".")
    return str(path.with_name(stem)) if stem else name, ending.lower()
