"""What a path of a data set is, and the reader for it."""

import glob
import json
from pathlib import Path

from disagg_train.data.chat.options import Format, SourceOptions
from disagg_train.data.chat.records import JsonRecords, Records
from disagg_train.data.chat.shards import TarRecords
from disagg_train.data.chat.tables import TableRecords
from disagg_train.errors import DataError


def open_records(options: SourceOptions) -> Records:
    """Return the records of a data set.

    Raises:
        DataError: there is nothing at its path, or it is of no known format.
    """
    found = options.format or _format(options.path)
    if found == "webdataset":
        return TarRecords(_shards(options.path))
    if found == "datasets":
        return TableRecords(_tables(Path(options.path)))
    if not Path(options.path).is_file():
        raise DataError(f"data.options.sources: there is no file {options.path!r}")
    return JsonRecords(options.path)


def folder_of(path: str) -> Path:
    """Return the folder that a data set lies in."""
    return Path(path) if Path(path).is_dir() else Path(path).parent


def _format(path: str) -> Format:
    if path.endswith((".json", ".jsonl")):
        return "json"
    if path.endswith(".tar"):
        return "webdataset"
    if path.endswith((".arrow", ".parquet")) or Path(path).is_dir():
        return "datasets"
    raise DataError(
        f"data.options.sources: cannot tell what {path!r} is; give `format: json`, `datasets` or "
        f"`webdataset`"
    )


def _shards(path: str) -> tuple[str, ...]:
    pattern = f"{path}/*.tar" if Path(path).is_dir() else path
    found = tuple(sorted(glob.glob(pattern)))  # patterns may be absolute, which Path.glob refuses
    if not found:
        raise DataError(f"data.options.sources: no shard matches {pattern!r}")
    return found


def _tables(path: Path) -> tuple[str, ...]:
    if path.is_file():
        return (str(path),)
    if (path / "dataset_dict.json").exists():
        raise DataError(
            f"data.options.sources: {str(path)!r} holds several splits; name one of them, such as "
            f"{str(path / 'train')!r}"
        )
    state = path / "state.json"
    if state.exists():
        files = json.loads(state.read_text(encoding="utf-8"))["_data_files"]
        return tuple(str(path / Path(each["filename"]).name) for each in files)
    found = sorted(
        str(each)
        for each in path.rglob("*")
        if each.suffix in (".arrow", ".parquet") and not each.name.startswith("cache-")
    )
    if not found:
        raise DataError(f"data.options.sources: no .arrow or .parquet file below {str(path)!r}")
    return tuple(found)
