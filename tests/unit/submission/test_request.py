"""What Ray is asked to run, and which variables of this shell go with it."""

import pytest

from disagg_train.config.load import read_content
from disagg_train.errors import ConfigError
from disagg_train.submission.job_file import JobToSend, job_to_send
from disagg_train.submission.request import STOP_WAIT, job_id_of, request_of, variables
from tests.unit.config.jobs import JOB


def _job(*overrides: str) -> JobToSend:
    return job_to_send(read_content(JOB, ["output=/shared/digits", *overrides]))


def test_the_driver_goes_on_from_its_newest_checkpoint() -> None:
    request = request_of(_job(), "mine", "auto", {})
    assert request.entrypoint == (
        "python -m disagg_train.cli train disagg-train-job.yaml --address auto --resume auto"
    )


def test_a_folder_to_resume_from_is_quoted_for_the_shell() -> None:
    request = request_of(_job(), "mine", "/a b; c", {})
    assert request.entrypoint.endswith("--resume '/a b; c'")


def test_a_folder_of_this_machine_is_nothing_to_resume_from() -> None:
    with pytest.raises(ConfigError, match="--resume runs/a: .* all nodes see"):
        request_of(_job(), "mine", "runs/a", {})


def test_beginning_anew_overwrites() -> None:
    assert request_of(_job(), "mine", None, {}).entrypoint.endswith("--address auto --overwrite")


def test_ray_waits_for_the_checkpoint_before_it_kills() -> None:
    request = request_of(_job("recovery.grace_s=99.5"), "mine", "auto", {"A": "b"})
    assert request.environment == {"A": "b", STOP_WAIT: "130"}


def test_what_ray_remembers_says_what_people_ask() -> None:
    metadata = request_of(_job(), "mine", "auto", {"A": "b"}).metadata
    assert (metadata["job"], metadata["steps"]) == ("digits", "3")
    assert metadata["output"] == "/shared/digits"
    assert all(isinstance(value, str) for value in metadata.values())


def test_an_id_says_the_name_and_is_new_each_time() -> None:
    ids = {job_id_of("My job: 7/8", None) for _ in range(8)}
    assert len(ids) == 8
    assert all(each.startswith("My-job-7-8-20") for each in ids)
    assert job_id_of("x", "mine.1") == "mine.1"


@pytest.mark.parametrize("given", ["", "a/b", "-a", "a b", "../a"])
def test_an_id_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="--submission-id"):
        job_id_of("x", given)


def test_named_variables_are_taken_from_the_shell() -> None:
    shell = {"NCCL_SOCKET_IFNAME": "eth0", "OTHER": "x"}
    assert variables(["NCCL_SOCKET_IFNAME"], shell) == {"NCCL_SOCKET_IFNAME": "eth0"}


_HEX = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MISSING", None, "no such variable"),
        ("A-B", "x", "no name of an environment variable"),
        ("RAY_AUTH_MODE", "token", "the cluster sets it"),
        ("RAY_JOB_STOP_WAIT_TIME_S", "1", "the cluster sets it"),
        ("HF_TOKEN", "x", "looks like a secret.*env_from_secrets"),
        ("RAY_AUTH_TOKEN", "x", "looks like a secret"),
        ("PLAIN", _HEX, "looks like a secret"),
        ("PLAIN", "ghp_" + "a1B2" * 8, "looks like a secret"),
        ("ADDRESS", "https://me:secret-word@host/", "looks like a secret"),
        ("A=secret-word", None, "export A and write --env A"),
    ],
)
def test_other_variables_are_refused_and_no_value_is_told(
    name: str, value: str | None, said: str
) -> None:
    shell = {} if value is None else {name: value}
    with pytest.raises(ConfigError, match=said) as caught:
        variables([name], shell)
    assert "secret-word" not in str(caught.value)
    assert value is None or len(value) < 9 or value not in str(caught.value)
