"""Which samples of which sets belong to a split, by their indexes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from disagg_train.data.chat.table import Table, concatenate
from disagg_train.data.sampler import mix
from disagg_train.data.sizes import InputSizes, SizeTable
from disagg_train.errors import DataError
from disagg_train.metrics.records import BadSample

Ints = NDArray[np.int64]
_HOLDING_OUT = np.uint64(0xD1B54A32D192ED03)
_SHOWN = 5


@dataclass(frozen=True)
class HeldOut:
    """How a held-out sample is cut.

    Args:
        room: tokens, at least, for an answer.
        max_tokens: of a fused sequence, the room included.
    """

    room: int
    max_tokens: int

    def lengths(self, table: Table) -> Ints:
        """Return the lengths of a table's samples as held-out ones."""
        start, stop = table["answer_start"].astype(np.int64), table["answer_stop"]
        return start + np.maximum(stop - start, self.room)

    def fits(self, samples: "Samples", tables: Sequence[Table]) -> NDArray[np.bool_]:
        """Return which samples are short enough to be held out."""
        rows = [(s, samples.row_N[samples.set_N == s]) for s in np.unique(samples.set_N)]
        lengths = [self.lengths(tables[s])[row] for s, row in rows]
        return np.concatenate([np.zeros(0, np.int64), *lengths]) <= self.max_tokens


@dataclass(frozen=True)
class Samples:
    """Some samples of several sets, by (set, row).

    Args:
        set_N: number of the set.
        row_N: row in the set's index.
    """

    set_N: Ints
    row_N: Ints

    @classmethod
    def usable(cls, tables: Sequence[Table], numbers: Sequence[int]) -> "Samples":
        """Return all samples of some sets that are not bad."""
        rows = [np.flatnonzero(tables[number].counts("reason") == 0) for number in numbers]
        sets = [np.full(len(each), n, np.int64) for n, each in zip(numbers, rows, strict=True)]
        none = np.zeros(0, np.int64)
        return cls(np.concatenate([none, *sets]), np.concatenate([none, *rows]))

    def __len__(self) -> int:
        return len(self.set_N)

    def where(self, chosen: NDArray[np.bool_]) -> "Samples":
        """Return some of them."""
        return Samples(self.set_N[chosen], self.row_N[chosen])

    def column(self, tables: Sequence[Table], name: str) -> NDArray[np.uint64]:
        """Return a column of the indexes, in this order."""
        found = [tables[s][name][self.row_N[self.set_N == s]] for s in np.unique(self.set_N)]
        return np.concatenate([np.zeros(0, np.uint64), *found])


def hold_out(
    samples: Samples, tables: Sequence[Table], count: int, cut: HeldOut
) -> NDArray[np.bool_]:
    """Return which samples to hold out: those of the lowest hashes, of those that fit.

    Which they are depends on no other sample, but for the last few.
    """
    fitting = cut.fits(samples, tables)
    hashes = mix(samples.column(tables, "key") ^ _HOLDING_OUT)
    order = np.argsort(np.where(fitting, hashes, np.uint64(2**64 - 1)), kind="stable")
    chosen = np.zeros(len(samples), bool)
    chosen[order[: min(count, int(fitting.sum()))]] = True
    return chosen


def sizes_of(
    samples: Samples,
    tables: Sequence[Table],
    weights: Sequence[float],
    encoders: tuple[str, ...],
    cut: HeldOut | None,
) -> SizeTable:
    """Return the sizes of samples.

    Args:
        samples: of which to return sizes.
        tables: the sets' indexes.
        weights: of the sets.
        encoders: names, as indexes number them.
        cut: how they are cut, where they are held out.
    """
    parts = []
    for number in np.unique(samples.set_N):
        whole = tables[number]
        bare = Table(whole.columns, {"inputs": _bare(whole)})
        table = bare.take(samples.row_N[samples.set_N == number])
        length = table["tokens"] if cut is None else cut.lengths(table).astype(np.int32)
        targets = table["answer_stop"] - table["answer_start"] if cut else table["targets"]
        weight = np.full(len(table), weights[number] if cut is None else 1.0)
        columns = {"key": table["key"], "length": length, "targets": targets, "weight": weight}
        parts.append(Table(columns, {"inputs": table.lists["inputs"]}))
    joined = concatenate(parts or [_NO_SAMPLES])
    first, inputs = joined.lists["inputs"]
    found = InputSizes(inputs["encoder"], inputs["position"], inputs["count"], inputs["computed"])
    return SizeTable(
        joined["key"],
        joined["length"],
        joined["targets"],
        joined["weight"],
        first,
        found,
        encoders,
    )


def bad_samples(table: Table, title: str, cut: HeldOut | None = None) -> list[BadSample]:
    """Return a set's bad samples, with their ids and reasons.

    Args:
        table: its index.
        title: what the set is called.
        cut: where the set is held out.
    """
    found = [
        BadSample(
            int(table["key"][row]), f"{where(table, row, title)}: {table.text('reason', row)}"
        )
        for row in np.flatnonzero(table.counts("reason")).tolist()
    ]
    if cut is not None:
        lengths = cut.lengths(table)
        found += [
            BadSample(
                int(table["key"][row]),
                f"{where(table, row, title)}: it has {lengths[row]} tokens with the room for an "
                f"answer (data.options.max_new_tokens={cut.room}); data.options.max_tokens is "
                f"{cut.max_tokens}",
            )
            for row in np.flatnonzero(lengths > cut.max_tokens).tolist()
        ]
    return found


def where(table: Table, row: int, title: str) -> str:
    """Return what a sample is called in messages."""
    name = table.text("name", row)
    return f"{title}, record {row + 1}" + (f", sample {name!r}" if name else "")


def refuse(bad: Sequence[BadSample]) -> None:
    """Raise an error that lists the first bad samples.

    Raises:
        DataError: there are any.
    """
    if not bad:
        return
    lines = [f"  {each.reason}" for each in bad[:_SHOWN]]
    more = [f"  and {len(bad) - _SHOWN} more"] if len(bad) > _SHOWN else []
    raise DataError(
        "\n".join(
            [
                f"{len(bad)} samples cannot be used; repair or remove them, or set "
                f"data.on_bad_sample: skip",
                *lines,
                *more,
            ]
        )
    )


def _bare(table: Table) -> tuple[Ints, Table]:
    """Return the inputs without what only the index needs."""
    starts, inputs = table.lists["inputs"]
    names = ("encoder", "position", "count", "computed")
    return starts, Table({name: inputs[name] for name in names})


_NO_SAMPLES = Table(
    {
        "key": np.zeros(0, np.uint64),
        "length": np.zeros(0, np.int32),
        "targets": np.zeros(0, np.int32),
        "weight": np.zeros(0, np.float64),
    },
    {
        "inputs": (
            np.zeros(1, np.int64),
            Table(
                {
                    "encoder": np.zeros(0, np.int16),
                    "position": np.zeros(0, np.int32),
                    "count": np.zeros(0, np.int32),
                    "computed": np.zeros(0, np.int32),
                }
            ),
        )
    },
)
