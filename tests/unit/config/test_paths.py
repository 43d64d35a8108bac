"""A job's data is found from any folder, and its order of samples does not depend on where."""

from pathlib import Path
from typing import Any

import pytest

from disagg_train.config.paths import with_absolute_paths


def _data(**options: Any) -> dict[str, Any]:
    return {"kind": "chat", "options": options}


def test_paths_become_absolute_and_the_given_one_stays_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sources = [{"path": "a.json", "root": "images"}, {"path": "b.json", "name": "mine"}]
    found = with_absolute_paths(_data(sources=sources, evaluation={"path": "held.json"}))["options"]
    assert found["sources"] == [
        {"name": "a.json", "path": str(tmp_path / "a.json"), "root": str(tmp_path / "images")},
        {"name": "mine", "path": str(tmp_path / "b.json")},
    ]
    assert found["evaluation"] == {"name": "held.json", "path": str(tmp_path / "held.json")}
    assert with_absolute_paths(_data(**found))["options"] == found


def test_a_tokenizer_that_is_no_folder_stays_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert with_absolute_paths(_data(tokenizer="org/some"))["options"]["tokenizer"] == "org/some"
    found = with_absolute_paths(_data(tokenizer="mine"))["options"]["tokenizer"]
    assert found == str(tmp_path / "mine")


@pytest.mark.parametrize("data", [None, {"kind": "digits", "options": {"sources": "a"}}, _data()])
def test_other_data_is_left_as_it_is(data: Any) -> None:
    assert with_absolute_paths(data) == data
