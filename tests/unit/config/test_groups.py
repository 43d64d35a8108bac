"""Where groups go, and what their ranks' processes start with: what a job file may say of it."""

import re

import pytest

from actors.resources import rank_resources
from disagg_train.config.load import load_job
from tests.unit.config.jobs import JOB, refusal


def test_a_group_takes_labels_and_a_strategy() -> None:
    job = load_job(
        JOB, ["groups.encoders.labels={pool: encoder}", "groups.encoders.strategy=spread"]
    )
    assert job.groups["encoders"].labels == {"pool": "encoder"}
    assert [group.strategy for group in job.groups.values()] == ["spread", "pack"]


@pytest.mark.parametrize("labels", ["{'a b': c}", "{pool: '!encoder'}", "{pool: 'in(a,b)'}"])
def test_what_is_no_label_is_refused(labels: str) -> None:
    assert "is no label" in refusal(f"groups.encoders.labels={labels}")


def test_ranks_start_with_the_jobs_environment_and_their_groups() -> None:
    job = load_job(
        JOB,
        [
            "environment={NCCL_SOCKET_IFNAME: eth0, NCCL_IB_GID_INDEX: 3}",
            "groups.encoders.environment={NCCL_SOCKET_IFNAME: eth1}",
        ],
    )
    found, _ = rank_resources(job, {"CPU": 8.0})
    assert dict(found["encoders"].environment) == {
        "NCCL_SOCKET_IFNAME": "eth1",
        "NCCL_IB_GID_INDEX": "3",
    }
    assert dict(found["language"].environment)["NCCL_SOCKET_IFNAME"] == "eth0"


def test_what_the_trainer_tells_nccl_is_added() -> None:
    job = load_job(JOB, ["environment={NCCL_DEBUG: INFO}", "device=cuda"])
    found, _ = rank_resources(job, {"CPU": 8.0, "GPU": 8.0})
    assert found["language"].environment == (
        ("NCCL_DEBUG", "INFO"),
        ("NCCL_LAUNCH_ORDER_IMPLICIT", "1"),
    )


@pytest.mark.parametrize("where", ["environment", "groups.encoders.environment"])
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("HF_TOKEN", "x", "looks like a secret.*kubernetes.env_from_secrets"),
        ("NOTE", "hf_" + "a" * 20, "holds a token.*kubernetes.env_from_secrets"),
        ("NOTE", "0123456789abcdef" * 2, "looks like a secret"),
        ("CUDA_VISIBLE_DEVICES", "0", "is set for every rank"),
        ("NCCL_LAUNCH_ORDER_IMPLICIT", "0", "is set for every rank"),
        ("RAY_memory_monitor_refresh_ms", "0", "when a node starts"),
        ("no-name", "x", "is no name of an environment variable"),
        ("SWITCH", "true", "valid string"),
    ],
)
def test_variables_that_are_not_a_jobs_to_set_are_refused(
    where: str, name: str, value: str, reason: str
) -> None:
    text = refusal(f"{where}={{{name}: {value}}}")
    assert text.startswith(where)
    assert re.search(reason, text, re.DOTALL)
