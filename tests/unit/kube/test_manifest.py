"""What a manifest says of a job: pods, resources, volumes, restarts, ends and queues."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from disagg_train.kube.manifest import driver_content
from disagg_train.kube.pods import GROUP_LABEL
from tests.unit.kube.jobs import (
    JOB,
    Case,
    cluster_of,
    every_case,
    objects,
    outline,
    refusal,
)
from tests.unit.kube.operator_rules import templates

Body = dict[str, Any]

_POD_MONITOR = Path(__file__).parents[3] / "deploy" / "prometheus" / "podmonitor.yaml"


def _workers(*overrides: str) -> list[Body]:
    return cluster_of(objects(*overrides)[1])["workerGroupSpecs"]


def _container(group: Body) -> Body:
    return group["template"]["spec"]["containers"][0]


def _variables(group: Body) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in _container(group)["env"]}


@every_case
def test_every_group_has_exactly_the_pods_that_its_ranks_fill(case: Case) -> None:
    job = outline(*case.overrides)
    for group, (name, config) in zip(
        cluster_of(case.ray())["workerGroupSpecs"], job.groups.items(), strict=True
    ):
        assert group["labels"][GROUP_LABEL] == group["groupName"] == name
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
        assert group["replicas"] * int(group["rayStartParams"]["num-cpus"]) == config.ranks


@every_case
def test_every_pod_is_unprivileged_and_knows_the_token_by_reference_only(case: Case) -> None:
    for template in templates(case.ray()):
        pod, (container,) = template["spec"], template["spec"]["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] > 0
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        token = next(each for each in container["env"] if each["name"] == "RAY_AUTH_TOKEN")
        assert token == {
            "name": "RAY_AUTH_TOKEN",
            "valueFrom": {"secretKeyRef": {"name": "ray-auth", "key": "auth_token"}},
        }


@every_case
def test_gpus_and_rdma_are_asked_for_where_the_job_has_them_only(case: Case) -> None:
    for group in cluster_of(case.ray())["workerGroupSpecs"]:
        limits = _container(group)["resources"]["limits"]
        assert ("nvidia.com/gpu" in limits) == ("-gpu-" in case.name)
        assert ("rdma/devices" in limits) == ("-rdma-" in case.name)
        assert ("NCCL_IB_DISABLE" in _variables(group)) == ("-gpu-" in case.name)


def test_large_groups_are_dealt_out_to_nodes() -> None:
    encoders, language = _workers("kubernetes.gpus_per_node=2", "kubernetes.memory_per_rank=16Gi")
    assert (encoders["replicas"], language["replicas"]) == (1, 2)
    assert _container(language)["resources"]["limits"] == {
        "cpu": "8",
        "memory": "32Gi",
        "nvidia.com/gpu": "2",
    }


def test_ranks_that_share_gpus_ask_for_fewer() -> None:
    language = _workers("groups.language.gpus_per_rank=0.25")[1]
    assert _container(language)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert language["rayStartParams"] == {"num-cpus": "4"}


def test_a_group_may_have_nodes_of_its_own() -> None:
    encoders, language = _workers(
        "kubernetes.groups.language={gpus_per_node: 4, cpus_per_rank: 2, memory_per_rank: 1Gi, "
        "node_selector: {gpu: h100}, tolerations: [{key: a}, {key: b, value: c}], labels: {x: y}}"
    )
    pod = language["template"]["spec"]
    assert "nodeSelector" not in encoders["template"]["spec"]
    assert pod["nodeSelector"] == {"gpu": "h100"}
    assert pod["tolerations"] == [
        {"key": "a", "operator": "Exists"},
        {"key": "b", "operator": "Equal", "value": "c"},
    ]
    assert language["labels"] == {GROUP_LABEL: "language", "x": "y"}
    limits = _container(language)["resources"]["limits"]
    assert (limits["cpu"], limits["memory"]) == ("8", "4Gi")


def test_nodes_get_the_labels_that_the_trainer_will_ask_for() -> None:
    found = cluster_of(
        objects(
            "groups.encoders.labels={pool: encoder, ray.io/market-type: spot}",
            "kubernetes.groups.encoders.labels={x: y, pool: encoder}",
        )[1]
    )
    encoders, language = found["workerGroupSpecs"]
    assert encoders["labels"] == {GROUP_LABEL: "encoders", "pool": "encoder", "x": "y"}
    assert language["labels"] == {GROUP_LABEL: "language"}


@pytest.mark.parametrize(
    "override",
    [
        "kubernetes.groups.encoders.labels={pool: other}",
        f"groups.encoders.labels={{{GROUP_LABEL}: other}}",
    ],
)
def test_a_label_with_two_values_is_refused(override: str) -> None:
    reason = refusal("groups.encoders.labels={pool: encoder}", override)
    assert "groups.encoders: the label" in reason
    assert "'other'" in reason


def test_all_pods_of_the_cluster_see_the_checkpoints_and_shared_memory() -> None:
    ray = objects("kubernetes.shm=8Gi")[1]
    for template in templates(ray)[:3]:
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        assert volumes["checkpoints"]["persistentVolumeClaim"] == {"claimName": "checkpoints"}
        assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
        mounts = {
            each["name"]: each["mountPath"]
            for each in template["spec"]["containers"][0]["volumeMounts"]
        }
        assert mounts["checkpoints"] == "/checkpoints"
        assert mounts["shm"] == "/dev/shm"


def test_the_head_holds_no_rank() -> None:
    head = cluster_of(objects()[1])["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == head["rayStartParams"]["num-gpus"] == "0"
    assert "nvidia.com/gpu" not in _container(head)["resources"]["limits"]


def test_pods_outlive_the_grace_of_the_run() -> None:
    ray = objects("recovery.grace_s=100.5")[1]
    assert all(each["spec"]["terminationGracePeriodSeconds"] > 101 for each in templates(ray))
    cluster = cluster_of(ray)
    assert int(_variables(cluster["headGroupSpec"])["RAY_JOB_STOP_WAIT_TIME_S"]) > 101
    for group in cluster["workerGroupSpecs"]:
        assert _container(group)["lifecycle"]["preStop"]["sleep"]["seconds"] == 101


def test_the_driver_resumes_whatever_started_it() -> None:
    spec = objects()[1]["spec"]
    assert spec["entrypoint"].endswith("--address auto --resume auto")
    assert spec["shutdownAfterJobFinishes"]


@pytest.mark.parametrize(("most", "retries"), [(10, 0), (10, 1), (10, 4), (3, 3), (0, 0), (11, 2)])
def test_kubernetes_does_not_multiply_the_restarts(most: int, retries: int) -> None:
    overrides = (f"recovery.max_restarts={most}", f"kubernetes.retries={retries}")
    job = outline(*overrides)
    each = driver_content(job, {**JOB, "recovery": {"max_restarts": most}})["recovery"]
    backoff = objects(*overrides)[1]["spec"]["backoffLimit"]
    assert backoff == retries
    assert backoff + (backoff + 1) * each["max_restarts"] <= most


def test_a_job_that_never_restarts_keeps_its_number() -> None:
    job = outline("recovery.restart=never", "kubernetes.retries=20")
    assert "recovery" not in driver_content(job, JOB)


def test_a_job_has_no_deadline_unless_it_asks_for_one() -> None:
    spec = objects()[1]["spec"]
    assert not {"activeDeadlineSeconds", "preRunningDeadlineSeconds"} & spec.keys()
    spec = objects("kubernetes.deadline_s=10", "kubernetes.start_deadline_s=20")[1]["spec"]
    assert (spec["activeDeadlineSeconds"], spec["preRunningDeadlineSeconds"]) == (10, 20)


@pytest.mark.parametrize(
    ("queue", "labels"),
    [
        ("kueue", {"kueue.x-k8s.io/queue-name": "q"}),
        ("volcano", {"ray.io/scheduler-name": "volcano", "volcano.sh/queue-name": "q"}),
        ("kai", {"kai.scheduler/queue": "q"}),
    ],
)
def test_a_queue_is_a_matter_of_labels_only(queue: str, labels: dict[str, str]) -> None:
    plain, queued = objects()[1], objects(f"kubernetes.queue={{kind: {queue}, name: q}}")[1]
    assert queued["metadata"]["labels"] == plain["metadata"]["labels"] | labels
    assert queued["spec"] == plain["spec"]


def test_a_job_of_one_s_own_variables_and_namespace() -> None:
    config_map, ray = objects(
        "kubernetes.namespace=team", "kubernetes.env={GLOO_SOCKET_IFNAME: ens5}"
    )
    assert config_map["metadata"]["namespace"] == ray["metadata"]["namespace"] == "team"
    for group in cluster_of(ray)["workerGroupSpecs"]:
        assert _variables(group)["GLOO_SOCKET_IFNAME"] == "ens5"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("device=auto",), ("device: auto", "set device: cuda or device: cpu")),
        (("name=1digits",), ("name: '1digits'", "begin with a letter")),
        (("name=" + "x" * 48,), ("47 characters",)),
        (("output=runs/digits",), ("output is 'runs/digits'", "as /checkpoints/digits")),
        (("output=/checkpoints2/a",), ("output", "/checkpoints/a")),
        (("checkpoint.folder=/tmp/x",), ("checkpoint.folder", "/checkpoints/x")),
        (("kubernetes.ray_version=2.51.0",), ("kubernetes.ray_version", "2.52.0")),
        (("kubernetes.groups.languge={}",), ("kubernetes.groups", "languge", "'language'")),
        (("kubernetes.gpus_per_node=3",), ("group 'language'", "gpus_per_node", "[1, 2, 4]")),
        (("device=cpu", "kubernetes.cpu_ranks_per_node=3"), ("cpu_ranks_per_node", "[1, 2, 4]")),
        (("kubernetes.retries=11",), ("kubernetes.retries=11", "max_restarts=10")),
        (
            ("kubernetes.data=[{claim: data, mount_path: /checkpoints}]",),
            ("mounted at '/checkpoints'",),
        ),
    ],
)
def test_a_job_that_cannot_run_there_is_refused(
    overrides: tuple[str, ...], said: tuple[str, ...]
) -> None:
    message = refusal(*overrides)
    assert all(words in message for words in said), message


def test_checkpoints_may_go_to_an_object_store() -> None:
    assert objects("checkpoint.folder=s3://bucket/run")


def test_kueue_admits_so_many_groups_only() -> None:
    names = [f"g{number}" for number in range(7)]
    groups = ", ".join(f"{name}: {{ranks: 1}}" for name in names)
    vision = JOB["modules"]["vision"] | {"parallel": {}}
    modules = {f"m{n}": vision | {"group": name} for n, name in enumerate(names[1:])}
    language = JOB["modules"]["language"] | {"group": "g0", "parallel": {}}
    overrides = (
        f"groups={{{groups}}}",
        f"modules={modules | {'language': language}}",
        "kubernetes.queue={kind: kueue, name: q}",
    )
    assert "6 actor groups" in refusal(*overrides)
    assert len(cluster_of(objects(*overrides, kind="raycluster")[1])["workerGroupSpecs"]) == 7


def test_groups_whose_names_become_one_are_refused() -> None:
    groups = "groups={a_b: {ranks: 2}, a-b: {ranks: 4}}"
    message = refusal(groups, "modules.vision.group=a_b", "modules.language.group=a-b")
    assert "'a_b'" in message


@every_case
def test_every_ray_pod_shows_its_metrics_where_the_pod_monitor_looks(case: Case) -> None:
    monitor = yaml.safe_load(_POD_MONITOR.read_text())
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    cluster = cluster_of(case.ray())
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        ports = group["template"]["spec"]["containers"][0]["ports"]
        assert {"name": endpoint["port"], "containerPort": 8080} in ports
        assert "metrics-export-port" not in group["rayStartParams"]  # 8080 is KubeRay's default
