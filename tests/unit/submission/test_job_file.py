"""What a job may not name when it is sent elsewhere, and what of it is sent."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from disagg_train.config.load import read_content
from disagg_train.errors import ConfigError
from disagg_train.submission.job_file import (
    SCHEDULE_FILE,
    check_data_is_sent,
    job_to_send,
    own_classes,
    with_schedule,
)
from tests.unit.config.jobs import JOB

_SENT = {**JOB, "output": "/shared/digits"}


def _content(*overrides: str) -> Mapping[str, Any]:
    return read_content(_SENT, overrides)


def test_a_job_whose_data_and_checkpoints_are_elsewhere_may_be_sent() -> None:
    content = _content(
        "modules.language={pretrained: /models/llm, group: language, parallel: {tp: 4}}",
        "data={kind: chat, options: {sources: [{path: /data/train.json}]}}",
        "checkpoint.folder=s3://bucket/digits",
    )
    assert job_to_send(content).output == "/shared/digits"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.steps=0", ("train.steps",)),
        ("train.stepz=1", ("train.stepz: unknown field", "'steps'")),
        ("modules.vision.parallel.dp=3", ("group 'encoders' has 2 ranks",)),
        ("output=runs/mine", ("output is 'runs/mine'", "--set output=/shared/mine")),
        ("output=s3://bucket/mine", ("output is 's3://bucket/mine'", "checkpoint.folder")),
        ("checkpoint.folder=ckpt", ("checkpoint.folder is 'ckpt'", "all nodes")),
        ("start_from=runs/first", ("start_from is 'runs/first'",)),
        ("output=~/mine", ("output is '~/mine'",)),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(override: str, said: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        job_to_send(_content(override))
    assert all(words in str(caught.value) for words in said), caught.value


def test_a_token_in_the_job_file_is_refused_and_not_repeated() -> None:
    token = "hf_" + "a1B2c3D4" * 4
    with pytest.raises(ConfigError, match="data.options.sources.0.token holds a token") as caught:
        job_to_send(_content(f"data.options={{sources: [{{token: {token}}}]}}"))
    assert token not in str(caught.value)


def test_a_checkpoint_in_a_folder_of_this_machine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llm").mkdir()
    with pytest.raises(ConfigError, match=r"modules\.language\.pretrained is 'llm', a folder of"):
        job_to_send(_content("modules.language.pretrained=llm"))
    job_to_send(_content("modules.language.pretrained=org/llm"))


@pytest.mark.parametrize("field", ["sources.0.path", "tokenizer", "index_folder"])
def test_data_by_a_relative_path_is_refused_unless_it_is_sent(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    path, _, _ = field.partition(".")
    value = '[{path: "mine/*.json"}]' if path == "sources" else "mine"
    content = _content("data.kind=chat", f"data.options.{path}={value}")
    with pytest.raises(ConfigError, match=rf"data\.options\.{field} is 'mine.*all nodes see"):
        check_data_is_sent(content, ["mine.py", "other/mine/a.json"])
    check_data_is_sent(content, ["mine/a.json"])


@pytest.mark.parametrize(
    ("path", "is_sent"),
    [
        ("shards/train-*.tar", True),
        ("./shards/train-?.tar", True),
        ("shards/train-{0..9}.tar", True),
        ("*.json", True),
        ("shards/test-*.tar", False),
        ("shards/train-*.zip", False),
        ("train-*.tar", False),
        ("shards", True),
        ("shards/train", False),
    ],
)
def test_patterns_are_sent_where_they_match_a_file(path: str, is_sent: bool) -> None:
    content = _content("data.kind=chat", f"data.options.sources=[{{path: '{path}'}}]")
    expected = contextlib.nullcontext() if is_sent else pytest.raises(ConfigError, match="relative")
    with expected:
        check_data_is_sent(content, ["shards/train-0.tar", "list.json"])


def test_classes_of_ones_own_are_found_and_ours_are_not() -> None:
    content = _content("modules.vision.kind=mine.encoder:Mine", "data.kind=sources:Source")
    assert own_classes(content) == {
        "modules.vision.kind": "mine.encoder:Mine",
        "data.kind": "sources:Source",
    }
    assert own_classes(_content("data.kind=disagg_train.data.digits:DigitsSource")) == {}


def test_a_schedule_of_this_machine_goes_with_the_job(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine")
    content = _content("train.schedule=mine.yaml")
    sent, schedule = with_schedule(content, tmp_path)
    assert sent["train"]["schedule"] == SCHEDULE_FILE
    assert schedule == tmp_path / "mine.yaml"
    assert content["train"]["schedule"] == "mine.yaml"


@pytest.mark.parametrize("schedule", ["gpipe", "/on/the/cluster.yaml"])
def test_other_schedules_are_left_as_they_are(schedule: str, tmp_path: Path) -> None:
    content = _content(f"train.schedule={schedule}")
    assert with_schedule(content, tmp_path) == (content, None)


def test_a_missing_schedule_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.schedule: there is no file mine\.yaml"):
        with_schedule(_content("train.schedule=mine.yaml"), tmp_path)
