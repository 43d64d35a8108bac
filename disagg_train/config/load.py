"""Read a job from YAML, with overrides, and say what is wrong with it in plain words."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from disagg_train.config.job import JobConfig
from disagg_train.config.paths import with_absolute_paths
from disagg_train.config.pretrained import fill_pretrained
from disagg_train.config.secret_values import check_no_secret, masked
from disagg_train.errors import ConfigError

_FILLED_IN = ("kind", "model")


def load_job(
    source: str | Path | Mapping[str, Any] | JobConfig, overrides: Sequence[str] = ()
) -> JobConfig:
    """Return the validated job, with the sizes that `pretrained` checkpoints decide.

    Args:
        source: path of a YAML file, its parsed content, or a job.
        overrides: ``a.b.c=value`` each; values are YAML.

    Raises:
        ConfigError: the file is missing, is no YAML, holds a secret, or breaks rules; each is named
            with the field's path. Rules that span several parts are looked at once the parts are
            sound.
    """
    content = read_content(source, overrides)
    check_no_secret(content)
    fill_pretrained(content.get("modules"))
    if "data" in content:
        content["data"] = with_absolute_paths(content["data"])
    try:
        return JobConfig.model_validate(content)
    except ValidationError as error:
        raise refusal(error.errors()) from None


def read_content(
    source: str | Path | Mapping[str, Any] | JobConfig, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what a job file says, with overrides, and nothing filled in or looked at.

    Args:
        source: path of a YAML file, its parsed content, or a job.
        overrides: ``a.b.c=value`` each; values are YAML.

    Raises:
        ConfigError: the file is missing or is no YAML, or an override is no such thing.
    """
    content: dict[str, Any] = _content(source)
    for override in overrides:
        _override(content, override)
    return content


def refusal(errors: Iterable[Any]) -> ConfigError:
    """Return the error that names the path of every field that breaks a rule.

    Args:
        errors: as pydantic lists them.
    """
    return ConfigError("\n".join(_explain(dict(error)) for error in errors))


def save_job(job: JobConfig, path: Path) -> None:
    """Write a job with all its fields, so that it can be loaded again."""
    path.write_text(yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False))


def job_schema() -> dict[str, Any]:
    """Return the JSON Schema of a job file; what a `pretrained` checkpoint fills in may lack."""
    schema = JobConfig.model_json_schema()
    for part in schema["$defs"].values():
        if {"pretrained", "model"} <= part.get("properties", {}).keys():
            part["required"] = [name for name in part["required"] if name not in _FILLED_IN]
    return schema


def _content(source: str | Path | Mapping[str, Any] | JobConfig) -> Any:
    if isinstance(source, JobConfig):
        return source.model_dump(exclude_unset=True)
    if isinstance(source, Mapping):
        return _copy(source)
    try:
        content = yaml.safe_load(Path(source).read_text())
    except FileNotFoundError:
        raise ConfigError(f"there is no job file {source}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the job file {source}: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{source} holds no fields; a job starts with `name:`")
    return content


def _copy(node: Any) -> Any:
    return {k: _copy(v) for k, v in node.items()} if isinstance(node, Mapping) else node


def _override(content: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals:
        raise ConfigError(f"override {override!r} has no '='; write a.b.c=value")
    *parents, field = path.split(".")
    node = content
    for name in parents:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {name} is a value, not a table of fields")
    try:
        node[field] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from None


def _explain(error: dict[str, Any]) -> str:
    location = list(error["loc"])
    if location[:1] == ["modules"]:
        del location[2:3]  # pydantic names the union's member there
    path = ".".join(map(str, location))
    if error["type"] == "extra_forbidden":
        *_, field = error["loc"]
        near = get_close_matches(str(field), _all_fields(), n=1)
        return f"{path}: unknown field" + (f"; did you mean {near[0]!r}?" if near else "")
    if error["type"] == "missing":
        return f"{path}: this field is required"
    if isinstance(cause := error.get("ctx", {}).get("error"), ConfigError):
        return f"{path}: {cause}" if path else str(cause)
    return masked(f"{path}: {error['msg']}, got {error['input']!r}")


def _all_fields() -> list[str]:
    schema = JobConfig.model_json_schema()
    tables = [schema, *schema["$defs"].values()]
    return sorted({name for table in tables for name in table.get("properties", {})})
