"""The log of a run: one line per event, and what it is about."""

import logging
from pathlib import Path

import pytest

from disagg_train.config.secret_values import masked
from disagg_train.metrics.events import LOG, Told, attached, event, run_log


def _plain(text: str) -> str:
    return text


def _lines(folder: Path) -> list[str]:
    return (folder / "run.log").read_text().splitlines()


def test_every_event_is_one_line_with_group_rank_and_step(tmp_path: Path) -> None:
    with run_log(tmp_path, _plain):
        event("failed:\n  it broke\n", 7, "encoders", 1, logging.ERROR)
        event("done")
    begun, failed, done, ended = (line.split(" ", 1) for line in _lines(tmp_path))
    assert failed[1] == "ERROR group=encoders rank=1 step=7 failed: | it broke"
    assert done[1] == "INFO group=- rank=- step=- done"
    assert begun[1].endswith("the run begins")
    assert ended[1].endswith("the run ends")


def test_a_run_that_is_started_again_goes_on_with_its_log(tmp_path: Path) -> None:
    for _ in range(2):
        with run_log(tmp_path, _plain):
            pass
    assert [line.split("step=- ")[1] for line in _lines(tmp_path)] == [
        "the run begins",
        "the run ends",
    ] * 2


def test_the_log_says_why_a_run_ended(tmp_path: Path) -> None:
    with pytest.raises(ValueError), run_log(tmp_path, _plain):
        raise ValueError("no room")
    with pytest.raises(KeyboardInterrupt), run_log(tmp_path, _plain):
        raise KeyboardInterrupt
    lines = _lines(tmp_path)
    assert "ERROR group=- rank=- step=- the run ends: ValueError: no room" in lines[1]
    assert lines[3].endswith("the run ends: KeyboardInterrupt")


def test_nothing_is_left_behind_once_a_log_is_closed(tmp_path: Path) -> None:
    before, level = list(LOG.handlers), LOG.level
    with run_log(tmp_path, _plain):
        assert LOG.handlers != before
    event("after the end")
    assert (LOG.handlers, LOG.level) == (before, level)
    assert "after the end" not in (tmp_path / "run.log").read_text()


def test_what_people_are_told_otherwise_is_not_told_twice() -> None:
    told: list[str] = []
    with attached(Told(told.append, _plain)):
        event("a note", is_note=True)
        event("a step", 3)
    assert [line.split(" ", 2)[2] for line in told] == ["group=- rank=- step=3 a step"]


def test_secrets_of_this_process_and_tokens_stay_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_TOKEN", "correct horse battery")
    monkeypatch.setenv("PLANTED_TOKEN_FILE", "/etc/tokens/file")
    issued = "hf_" + "a1B2" * 6
    with run_log(tmp_path, masked):
        event(f"401 for correct horse battery, and {issued}: see /etc/tokens/file")
    (line,) = [line for line in _lines(tmp_path) if "401" in line]
    assert line.endswith("401 for ***, and ***: see /etc/tokens/file")
