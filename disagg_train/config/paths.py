"""Paths of a data set, made absolute: ranks may run in other folders than the driver."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_FILES = ("tokenizer", "chat_template", "index_folder")
_SET_FILES = ("path", "root")


def with_absolute_paths(data: Any) -> Any:
    """Return the ``data`` of a job with the paths of the kind `chat` absolute.

    A set keeps its given path as its name, so that the order of samples does not depend on
    where the data lies. What is not as it should be is left for the rules to name.

    Args:
        data: as the job file has it.
    """
    options = data.get("options") if isinstance(data, Mapping) else None
    if not isinstance(options, Mapping) or data.get("kind") != "chat":
        return data
    found = dict(options)
    for field in _FILES:
        if isinstance(path := found.get(field), str):
            is_hub_id = field == "tokenizer" and not Path(path).expanduser().is_dir()
            found[field] = path if is_hub_id else _absolute(path)
    if isinstance(sources := found.get("sources"), list | tuple):
        found["sources"] = [_with_absolute_files(each) for each in sources]
    if isinstance(evaluation := found.get("evaluation"), Mapping):
        found["evaluation"] = _with_absolute_files(evaluation)
    return {**data, "options": found}


def relative_paths(data: Any) -> Iterator[tuple[str, str]]:
    """Yield field and path of all that the kind `chat` reads by a relative path.

    Args:
        data: as the job file has it.
    """
    if isinstance(data, Mapping):
        found = with_absolute_paths(data)
        yield from _changed("data.options", data.get("options"), found.get("options"))


def _changed(field: str, given: Any, found: Any) -> Iterator[tuple[str, str]]:
    if isinstance(given, str):
        if given != found and not given.startswith("~"):
            yield field, given
    elif isinstance(given, Mapping):
        for key, value in given.items():
            yield from _changed(f"{field}.{key}", value, found[key])
    elif isinstance(given, list | tuple):
        for number, value in enumerate(given):
            yield from _changed(f"{field}.{number}", value, found[number])


def _with_absolute_files(source: Any) -> Any:
    if not isinstance(source, Mapping) or not isinstance(source.get("path"), str):
        return source
    paths = {
        field: _absolute(source[field])
        for field in _SET_FILES
        if isinstance(source.get(field), str)
    }
    return {"name": source["path"], **source, **paths}


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
