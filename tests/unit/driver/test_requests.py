"""Requests to a run are files: complete or not there, taken once, in order."""

from pathlib import Path

import pytest

from disagg_train.driver.requests import Requests, ResizeRequest
from disagg_train.errors import ConfigError


def test_requests_are_taken_once_and_in_order(tmp_path: Path) -> None:
    asked = [ResizeRequest("encoders", 2), ResizeRequest("llm", 4)]
    for request in asked:
        Requests(tmp_path).ask(request)
    run = Requests(tmp_path)
    assert run.waiting
    assert run.take() == asked
    assert not run.waiting
    assert run.take() == []


def test_a_run_does_not_do_what_was_asked_of_an_earlier_one(tmp_path: Path) -> None:
    Requests(tmp_path).ask(ResizeRequest("llm", 4))
    Requests(tmp_path).clear()
    assert not Requests(tmp_path).waiting


def test_what_is_no_request_is_named(tmp_path: Path) -> None:
    (tmp_path / "requests").mkdir()
    (tmp_path / "requests" / "1.json").write_text('{"group": "llm"}')
    with pytest.raises(ConfigError, match=r"1\.json was no request"):
        Requests(tmp_path).take()
