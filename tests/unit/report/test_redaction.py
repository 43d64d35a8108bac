"""Texts that others wrote come into the page without secrets."""

import pytest

from disagg_train.report.redaction import HIDDEN, Redaction


@pytest.mark.parametrize(
    "secret",
    [
        "hf_abcdefghijklmnopqrstuv",
        "s3://user:hunter22@bucket/data",
        "0123456789abcdef0123456789abcdef",
        "eyJhbGciOiJI.eyJzdWIiOiIx.c2ln",
    ],
)
def test_what_looks_like_a_secret_is_hidden(secret: str) -> None:
    found = Redaction([])(f"cannot read '{secret}', access denied")
    assert secret not in found
    assert found == f"cannot read '{HIDDEN}', access denied"


def test_known_values_are_hidden_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "open sesame")
    job = {
        "data": {"options": {"api_key": "plain-looking", "path": "/data"}},
        "kubernetes": {"env": {"PROXY": "proxy.example:3128"}},
    }
    text = "plain-looking open sesame proxy.example:3128 /data"
    assert Redaction.of(job)(text) == f"{HIDDEN} {HIDDEN} {HIDDEN} /data"


def test_other_texts_stay_as_they_are() -> None:
    text = 'step 3: rank 1, node 192.0.2.2: File "/srv/a.py", line 7, in run\n  loss = f(x=[1])'
    assert Redaction(["ab"])(text) == text
