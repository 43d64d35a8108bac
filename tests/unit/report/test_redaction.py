"""Texts that others wrote come into the page without secrets."""

import pytest

from disagg_train.config.secret_values import MASK
from disagg_train.report.redaction import Redaction


@pytest.mark.parametrize(
    ("secret", "shown"),
    [
        ("hf_abcdefghijklmnopqrstuv", MASK),
        ("s3://user:hunter22@bucket/data", f"s3://{MASK}@bucket/data"),
        ("0123456789abcdef0123456789abcdef", MASK),
        ("eyJhbGciOiJI.eyJzdWIiOiIx.c2ln", MASK),
    ],
)
def test_what_looks_like_a_secret_is_hidden(secret: str, shown: str) -> None:
    found = Redaction()(f"cannot read '{secret}', access denied")
    assert found == f"cannot read '{shown}', access denied"


@pytest.mark.parametrize("around", ["key:{}", "it is {}.", "?api_key={}&a=1", "({})", "<{}>?"])
def test_what_stands_around_a_random_token_does_not_show_it(around: str) -> None:
    token = "0123456789abcdef0123456789abcdef"
    assert Redaction()(around.format(token)) == around.format(MASK)


def test_known_values_are_hidden_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "open sesame")
    job = {
        "data": {"options": {"api_key": "plain-looking", "path": "/data"}},
        "kubernetes": {"env": {"PROXY": "proxy.example:3128"}},
        "groups": {"language": {"environment": {"NCCL_IB_HCA": "mlx5_0,mlx5_1"}}},
    }
    text = "plain-looking open sesame proxy.example:3128 mlx5_0,mlx5_1 /data"
    assert Redaction.of(job)(text) == f"{MASK} {MASK} {MASK} {MASK} /data"


def test_other_texts_stay_as_they_are() -> None:
    text = 'step 3: rank 1, node 192.0.2.2: File "/srv/a.py", line 7, in run\n  loss = f(x=[1])'
    assert Redaction(["ab"])(text) == text
