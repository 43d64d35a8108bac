"""No secret comes to stand in a manifest, wherever somebody left one."""

from pathlib import Path

import pytest
import yaml

from disagg_train.cli import main
from tests.unit.kube.jobs import JOB

_TOKENS = {
    "RAY_AUTH_TOKEN": "ray-" + "0123456789abcdef" * 4,
    "HF_TOKEN": "hf_" + "a1B2c3D4" * 4,
    "AWS_SECRET_ACCESS_KEY": "wJalr" + "XUtnFEMIK7MDENG" * 2,
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567",
    "OPENAI_API_KEY": "sk-" + "a1B2c3D4" * 4,
}


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(dict(JOB)))
    return file


@pytest.mark.parametrize("kind", ["rayjob", "raycluster"])
def test_tokens_of_this_machine_are_not_in_the_manifest(
    kind: str,
    job_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, token in _TOKENS.items():
        monkeypatch.setenv(name, token)
    references = [
        f"kubernetes.env_from_secrets.{name}={{secret: hub, key: token}}"
        for name in _TOKENS
        if name != "RAY_AUTH_TOKEN"
    ]
    options = [part for each in references for part in ("--set", each)]
    assert main(["manifest", str(job_file), "--kind", kind, *options]) == 0
    printed = capsys.readouterr().out
    assert not [name for name, token in _TOKENS.items() if token in printed]
    assert "HF_TOKEN" in printed


@pytest.mark.parametrize(("name", "token"), _TOKENS.items())
@pytest.mark.parametrize("disguise", [None, "PLAIN", "SETTINGS"])
def test_tokens_in_the_job_s_environment_are_refused_and_not_repeated(
    name: str,
    token: str,
    disguise: str | None,
    job_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if disguise and name == "RAY_AUTH_TOKEN":
        token = token.removeprefix("ray-")
    variable = disguise or name
    option = f"kubernetes.env.{variable}={token!r}"
    assert main(["manifest", str(job_file), "--set", option]) == 1
    said = capsys.readouterr()
    assert token not in said.out + said.err
    assert said.out == ""
    assert variable in said.err
    assert "env_from_secrets" in said.err or "remove it" in said.err


@pytest.mark.parametrize(
    "option",
    [
        f"data.options={{token: {_TOKENS['HF_TOKEN']}}}",
        "data.options={sources: [{path: 'https://user:pass@example.org/x'}]}",
        "start_from=s3://AKIA" + "ABCDEFGH12345678",
    ],
)
def test_a_job_file_with_a_token_in_it_is_refused(
    option: str, job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["manifest", str(job_file), "--set", option]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert option.partition("=")[0] in said.err
    assert "Secret" in said.err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKENIZERS_PARALLELISM", "false"),
        ("NCCL_IB_PKEY", "0"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/secrets/token"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/etc/gcp/key.json"),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"),
        ("AWS_ENDPOINT_URL", "http://minio:9000"),
        ("HF_HOME", "/checkpoints/cache/Huggingface-hub-0123456789"),
    ],
)
def test_ordinary_variables_are_taken(
    name: str, value: str, job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["manifest", str(job_file), "--set", f"kubernetes.env.{name}={value!r}"]) == 0
    assert value in capsys.readouterr().out
