"""Hugging Face data sets saved to disk, and other Arrow and Parquet files.

Columns of images and sounds are read as they are stored (bytes or a path), never decoded.
"""

import threading
from pathlib import Path
from typing import Any

import numpy as np

from disagg_train.data.chat.conversation import Record, record_id
from disagg_train.data.chat.records import Found
from disagg_train.errors import DataError

_MOST_OPEN = 64


class TableRecords:
    """Rows of Arrow or Parquet files.

    Args:
        files: in order. A place is (record batch or row group, row in it).
    """

    def __init__(self, files: tuple[str, ...]) -> None:
        self.files = files
        self._opened: dict[int, _ArrowFile | _ParquetFile] = {}
        self._lock = threading.Lock()

    def scan(self, file: int) -> Found:
        """Find all rows from the file's own index."""
        counts = self._open(file).counts
        groups = np.repeat(np.arange(len(counts)), counts)
        rows = [np.arange(count) for count in counts]
        places = np.stack([groups, np.concatenate([np.zeros(0, np.int64), *rows])], axis=1)
        return Found(places.astype(np.int64), np.zeros(len(places), np.uint64))

    def read(self, file: int, place: tuple[int, int]) -> tuple[Record, str]:
        """Return one row, and its id."""
        with self._lock:  # Parquet files have one reading position
            row: dict[str, Any] = self._open(file).row(*place)
        return row, record_id(row) or f"{Path(self.files[file]).name}/{place[0]}/{place[1]}"

    def __reduce__(self) -> tuple[type["TableRecords"], tuple[tuple[str, ...]]]:
        """Pickle by the names of its files."""
        return type(self), (self.files,)

    def _open(self, file: int) -> "_ArrowFile | _ParquetFile":
        if file not in self._opened:
            path = self.files[file]
            if len(self._opened) >= _MOST_OPEN:
                self._opened.pop(next(iter(self._opened)))
            try:
                kind = _ParquetFile if path.endswith(".parquet") else _ArrowFile
                self._opened[file] = kind(path)
            except Exception as error:  # pyarrow has kinds of its own
                raise DataError(f"{path}: {error}") from None
        return self._opened[file]


class _ArrowFile:
    """An Arrow stream or file, mapped into memory."""

    def __init__(self, path: str) -> None:
        import pyarrow as pa

        mapped = pa.memory_map(path)
        try:
            self._batches = pa.ipc.open_stream(mapped).read_all().to_batches()
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(mapped)
            self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self.counts = [len(batch) for batch in self._batches]

    def row(self, batch: int, row: int) -> Any:
        return self._batches[batch].slice(row, 1).to_pylist()[0]


class _ParquetFile:
    """A Parquet file; the newest row group stays in memory."""

    def __init__(self, path: str) -> None:
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(path)
        metadata = self._file.metadata
        self.counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._newest = -1
        self._rows: Any = None

    def row(self, group: int, row: int) -> Any:
        if group != self._newest:
            self._newest, self._rows = group, self._file.read_row_group(group)
        return self._rows.slice(row, 1).to_pylist()[0]
