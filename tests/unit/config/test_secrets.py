"""A job file with a secret in it is refused by name, and its value is not repeated."""

import pytest

from disagg_train.config.load import load_job
from disagg_train.config.secret_values import mask_error, masked
from tests.unit.config.jobs import JOB, refusal

_HUB = "hf_" + "a1B2c3D4" * 4


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data.options.password", "hunter2-hunter2"),
        ("data.options.token", "plain-looking"),
        ("data.options.db_password", "hunter2-hunter2"),
        ("data.options.aws_secret_access_key", "plain-looking"),
        ("data.options.sources.0.api_key", "plain-looking"),
        ("modules.vision.options.api_key", "plain-looking"),
        ("data.options.anything", _HUB),
        ("data.options.sources.0.path", "https://user:hunter2@example.org/x"),
        ("start_from", "s3://AKIA" + "ABCDEFGH12345678"),
        ("sinks.mlflow.tracking_uri", "https://user:hunter2@tracking.example"),
    ],
)
def test_a_secret_is_refused_and_not_repeated(path: str, value: str) -> None:
    head, _, last = path.rpartition(".")
    head, *in_list = head.split(".0") if ".0" in head else [head]
    override = f"{path}={value}"
    if in_list:
        override = f"{head}=[{{{last}: '{value}'}}]"
    elif path.startswith("sinks.mlflow"):
        override = f"sinks.mlflow={{experiment: e, tracking_uri: '{value}'}}"
    said = refusal(override)
    assert path in said
    assert "environment variable" in said
    assert value not in said


@pytest.mark.parametrize(
    "options",
    [
        "{image_token: '<image>', image_token_id: 7, eos_token: '</s>'}",
        "{text_key: text, key: conversations, keys: [a, b]}",
        "{token_env: HF_TOKEN, password_file: /run/secrets/p}",
        "{max_tokens: 120, token: null}",
    ],
)
def test_ordinary_options_are_taken(options: str) -> None:
    load_job(JOB, [f"data.options={options}"])


def test_texts_are_shown_without_their_secrets() -> None:
    text = f"got {_HUB!r}, or https://u:hunter2@x.org/y"
    assert masked(text) == "got '***', or https://***@x.org/y"
    assert masked("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n") == "***"
    assert masked("no secret: https://x.org:80/y") == "no secret: https://x.org:80/y"


def test_variables_are_masked_without_the_blanks_around_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SHORT_TOKEN", "open-sesame")
    monkeypatch.setenv("LONG_TOKEN", "open-sesame-2\n")
    assert masked("open-sesame, open-sesame-2: refused") == "***, ***: refused"


def test_errors_are_masked_with_those_that_they_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_PASSWORD", "open-sesame")
    try:
        try:
            raise ConnectionError("401 for open-sesame", 401)
        except ConnectionError as error:
            raise OSError(18, "not moved", "/open-sesame/a", None, "/b/open-sesame") from error
    except OSError as error:
        mask_error(error)
        assert str(error) == "[Errno 18] not moved: '/***/a' -> '/b/***'"
        assert error.__cause__ is not None
        assert error.__cause__.args == ("401 for ***", 401)
