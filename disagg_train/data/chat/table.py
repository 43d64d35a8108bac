"""Columns of numbers, with lists of rows inside of rows, and the file that keeps them.

The file is a line of JSON (names, types and places of the columns) and the columns' bytes. It
is mapped into memory, so an index of millions of samples costs a reader what it reads of it.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[Any]
Rows = NDArray[np.int64]
_ALIGN = 64


@dataclass(frozen=True)
class Table:
    """Rows of numbers, lists and texts.

    Args:
        columns: one value per row.
        lists: per name, where each row's list begins in another table (one entry more than
            rows), and that table.
    """

    columns: Mapping[str, Column]
    lists: Mapping[str, tuple[Rows, "Table"]] = field(default_factory=dict)

    def __len__(self) -> int:
        for column in self.columns.values():
            return len(column)
        return 0

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]

    def take(self, rows: Rows) -> "Table":
        """Return some rows, in the given order."""
        lists = {}
        for name, (starts, values) in self.lists.items():
            begins, counts = starts[:-1][rows], np.diff(starts)[rows]
            lists[name] = (_starts(counts), values.take(_ranges(begins, counts)))
        return Table({name: column[rows] for name, column in self.columns.items()}, lists)

    def list_of(self, name: str, row: int) -> "Table":
        """Return one row's list."""
        starts, values = self.lists[name]
        return values.slice(int(starts[row]), int(starts[row + 1]))

    def slice(self, first: int, last: int) -> "Table":
        """Return rows without copying them; lists inside keep their whole table."""
        lists = {name: (s[first : last + 1], values) for name, (s, values) in self.lists.items()}
        return Table({name: column[first:last] for name, column in self.columns.items()}, lists)

    def text(self, name: str, row: int) -> str:
        """Return a row's text."""
        starts, values = self.lists[name]
        raw = values["byte"][int(starts[row]) : int(starts[row + 1])]
        return raw.tobytes().decode(errors="replace")

    def counts(self, name: str) -> Rows:
        """Return the lengths of a list in every row."""
        return np.diff(self.lists[name][0])

    def with_columns(self, **columns: Column) -> "Table":
        """Return the table with some columns replaced or added."""
        return Table({**self.columns, **columns}, self.lists)


def concatenate(tables: Sequence[Table]) -> Table:
    """Return the rows of several tables of the same columns."""
    first = tables[0]
    columns = {name: np.concatenate([t.columns[name] for t in tables]) for name in first.columns}
    lists = {}
    for name in first.lists:
        counts = np.concatenate([table.counts(name) for table in tables])
        lists[name] = (_starts(counts), concatenate([t.lists[name][1] for t in tables]))
    return Table(columns, lists)


def texts(values: Sequence[str]) -> tuple[Rows, Table]:
    """Return a list column of texts."""
    raw = [value.encode(errors="surrogatepass") for value in values]
    starts = _starts(np.array([len(each) for each in raw], np.int64))
    return starts, Table({"byte": np.frombuffer(b"".join(raw), np.uint8)})


def nested(counts: Sequence[int], values: Table) -> tuple[Rows, Table]:
    """Return a list column from the lengths of its lists."""
    return _starts(np.array(counts, np.int64)), values


def save(path: Path, table: Table, header: Mapping[str, Any]) -> None:
    """Write a table; a reader sees the old file or the new one."""
    columns = {name: np.ascontiguousarray(column) for name, column in _flat(table).items()}
    places, place = {}, 0
    for name, column in columns.items():
        places[name] = [column.dtype.str, len(column), place]
        place += -(-column.nbytes // _ALIGN) * _ALIGN
    line = json.dumps({"header": dict(header), "columns": places}).encode()
    line += b" " * (-(len(line) + 1) % _ALIGN) + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "wb") as file:
        file.write(line)
        for column in columns.values():
            file.write(column.tobytes())
            file.write(b"\0" * (-column.nbytes % _ALIGN))
    Path(temporary).chmod(0o644)
    Path(temporary).replace(path)


def load(path: Path) -> tuple[Table, dict[str, Any]]:
    """Map a table into memory; return it with its header.

    Raises:
        ValueError: the file is not whole.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        line = file.readline()
    size = path.stat().st_size
    try:
        found = json.loads(line)
        places = found["columns"]
        data = np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)
        columns = {n: _column(data, len(line), *place) for n, place in places.items()}
        return _nest(columns), found["header"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no index: {error!r}") from None


def _column(data: Column, base: int, dtype: str, count: int, place: int) -> Column:
    kind = np.dtype(dtype)
    raw = data[base + place : base + place + count * kind.itemsize]
    if len(raw) != count * kind.itemsize or kind.hasobject:
        raise ValueError("an index ends too early")
    return np.asarray(raw).view(kind)


def _flat(table: Table, prefix: str = "") -> dict[str, Column]:
    found = {prefix + name: column for name, column in table.columns.items()}
    for name, (starts, values) in table.lists.items():
        found[f"{prefix}{name}/"] = starts
        found |= _flat(values, f"{prefix}{name}/")
    return found


def _nest(columns: Mapping[str, Column]) -> Table:
    plain = {name: column for name, column in columns.items() if "/" not in name}
    lists = {}
    for name in columns:
        head, slash, rest = name.partition("/")
        if slash and not rest:
            inside = {n.removeprefix(name): c for n, c in columns.items() if n.startswith(name)}
            del inside[""]
            lists[head] = (columns[name], _nest(inside))
    return Table(plain, lists)


def _starts(counts: Rows) -> Rows:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def _ranges(begins: Rows, counts: Rows) -> Rows:
    """Return ``begins[0], begins[0] + 1, ...``: ``counts[i]`` numbers from each begin on."""
    starts = _starts(counts)
    return np.arange(starts[-1]) + np.repeat(begins - starts[:-1], counts)
