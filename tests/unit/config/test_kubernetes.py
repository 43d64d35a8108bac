"""The `kubernetes` section of a job file: what it refuses, and how it says so."""

import pytest

from disagg_train.config.load import load_job
from tests.unit.config.jobs import JOB, refusal

_VALID = {"image": "a:1", "checkpoints": {"claim": "c", "mount_path": "/c/"}}
_JOB = {**JOB, "kubernetes": _VALID}


def test_training_takes_a_job_with_the_section() -> None:
    about = load_job(_JOB).kubernetes
    assert about is not None
    assert about.checkpoints.mount_path == "/c"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("kubernetes.imag=a", ("kubernetes.imag: unknown field", "'image'")),
        ("kubernetes.image=null", ("kubernetes.image",)),
        ("kubernetes.checkpoints={claim: c}", ("kubernetes.checkpoints.mount_path", "required")),
        ("kubernetes.checkpoints.mount_path=c", ("checkpoints.mount_path", "'c'", "/checkpoints")),
        ("kubernetes.checkpoints.mount_path=/", ("checkpoints.mount_path",)),
        ("kubernetes.checkpoints.claim=C_1", ("checkpoints.claim", "'C_1'", "lower-case")),
        ("kubernetes.namespace=A", ("kubernetes.namespace", "lower-case")),
        ("kubernetes.memory_per_rank=12 GB", ("kubernetes.memory_per_rank", "32Gi")),
        ("kubernetes.shm=0Gi", ("kubernetes.shm", "32Gi")),
        ("kubernetes.gpus_per_node=0", ("kubernetes.gpus_per_node",)),
        ("kubernetes.queue={kind: slurm, name: q}", ("kubernetes.queue.kind", "kueue")),
        ("kubernetes.queue={kind: kai}", ("kubernetes.queue.name", "required")),
        ("kubernetes.rdma.resource=rdma", ("kubernetes.rdma.resource",)),
        ("kubernetes.ray_version=latest", ("kubernetes.ray_version",)),
        ("kubernetes.env={A-B: x}", ("kubernetes.env", "'A-B'")),
        ("kubernetes.env={RAY_AUTH_MODE: disabled}", ("RAY_AUTH_MODE", "remove it")),
        ("kubernetes.env={REDIS_PASSWORD: x}", ("REDIS_PASSWORD", "operator")),
        (
            "kubernetes.env={DB_PASSWORD: x}",
            ("DB_PASSWORD looks like a secret", "env_from_secrets"),
        ),
        (
            "kubernetes.env_from_secrets={RAY_AUTH_TOKEN: {secret: a, key: b}}",
            ("RAY_AUTH_TOKEN", "remove it"),
        ),
        ("kubernetes.groups.language.labels={ray.io/x: y}", ("ray.io/x", "another key")),
        ("kubernetes.groups.language.labels={'a b': y}", ("a b", "no label")),
        ("kubernetes.head.node_selector={a: 'b c'}", ("kubernetes.head.node_selector", "b c")),
        ("kubernetes.head.tolerations=[{key: a, effect: Never}]", ("tolerations.0.effect",)),
    ],
)
def test_a_mistake_is_named_with_its_field(override: str, said: tuple[str, ...]) -> None:
    message = refusal(override, job=_JOB)
    assert all(words in message for words in said), message
