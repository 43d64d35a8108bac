"""What ranks take of a cluster, and how many fit: decided from numbers alone."""

import copy
from typing import Any

import pytest

from actors import resources
from actors.resources import Resources, capacity, rank_resources
from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.errors import ConfigError
from tests.unit.config.jobs import JOB


def _job(*overrides: str, encoders: float = 1.0, language: float = 1.0) -> JobConfig:
    job: dict[str, Any] = copy.deepcopy(dict(JOB))
    job["groups"]["encoders"]["gpus_per_rank"] = encoders
    job["groups"]["language"]["gpus_per_rank"] = language
    return load_job(job, overrides)


@pytest.fixture(autouse=True)
def _cupy_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources.importlib.util, "find_spec", lambda name: name == "cupy")


def test_every_group_takes_what_its_file_says() -> None:
    found, note = rank_resources(_job(encoders=0.25, language=0.5), {"GPU": 3.0, "CPU": 8.0})
    assert {name: one.bundle() for name, one in found.items()} == {
        "encoders": {"GPU": 0.25, "CPU": 1.0},
        "language": {"GPU": 0.5, "CPU": 1.0},
    }
    assert not note


def test_sharing_a_gpu_is_told_to_every_rank_of_the_job_or_to_none() -> None:
    order, sharing = ("NCCL_LAUNCH_ORDER_IMPLICIT", "1"), ("NCCL_MULTI_RANK_GPU_ENABLE", "1")
    shared, _ = rank_resources(_job(encoders=0.5), {"GPU": 8.0})
    assert {one.environment for one in shared.values()} == {(order, sharing)}
    whole, _ = rank_resources(_job(), {"GPU": 8.0})
    assert {one.environment for one in whole.values()} == {(order,)}


def test_a_group_asks_ray_for_its_kind_of_gpu() -> None:
    total = {"GPU": 6.0, "accelerator_type:H100": 1.0, "accelerator_type:L40S": 1.0}
    found, _ = rank_resources(_job("groups.encoders.accelerator=L40S"), total)
    assert found["encoders"].bundle() == {"GPU": 1.0, "CPU": 1.0, "accelerator_type:L40S": 0.001}
    assert found["language"].bundle() == {"GPU": 1.0, "CPU": 1.0}


def test_a_kind_of_gpu_that_no_node_has_is_refused() -> None:
    total = {"GPU": 6.0, "accelerator_type:H100": 1.0}
    with pytest.raises(ConfigError, match=r"groups\.encoders\.accelerator is 'L40S'.*\['H100'\]"):
        rank_resources(_job("groups.encoders.accelerator=L40S"), total)


def test_on_cpus_nobody_asks_for_a_kind_of_gpu() -> None:
    found, _ = rank_resources(_job("device=cpu", "groups.encoders.accelerator=L40S"), {"CPU": 8.0})
    assert found["encoders"].bundle() == {"CPU": 1.0}


def test_several_ranks_may_ask_for_gpus() -> None:
    found, _ = rank_resources(_job("device=cuda"), {"GPU": 1.0})
    assert {one.gpus for one in found.values()} == {1.0}


def test_gpus_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match="the cluster has no GPU; set device: cpu or auto"):
        rank_resources(_job("device=cuda"), {"CPU": 8.0})


def test_auto_passes_over_too_few_gpus_and_says_so() -> None:
    found, note = rank_resources(_job(), {"GPU": 2.0, "CPU": 8.0})
    assert "need 6 GPUs and the cluster has 2, so all ranks run on CPUs" in note
    assert {one.bundle().get("GPU") for one in found.values()} == {None}
    assert {one.environment for one in found.values()} == {(("DISAGG_TRAIN_FORCE_CPU", "1"),)}


def test_auto_takes_too_few_gpus_where_the_job_may_shrink() -> None:
    found, note = rank_resources(_job("fallback=colocated"), {"GPU": 2.0, "CPU": 8.0})
    assert {one.gpus for one in found.values()} == {1.0}
    assert not note


def test_auto_passes_over_gpus_that_nothing_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources.importlib.util, "find_spec", lambda name: None)
    found, note = rank_resources(_job(), {"GPU": 8.0})
    assert "CuPy is not installed" in note
    assert {one.gpus for one in found.values()} == {0.0}


def test_without_gpus_ranks_take_cpus_and_need_no_environment() -> None:
    for device in ("cpu", "auto"):
        found, note = rank_resources(_job(f"device={device}"), {"CPU": 8.0})
        assert set(found.values()) == {Resources(0.0, 1.0)}
        assert not note


@pytest.mark.parametrize(
    ("shares", "total", "room"),
    [
        ((1.0, 1.0), {"GPU": 6.0, "CPU": 6.0}, 6),
        ((1.0, 1.0), {"GPU": 5.0, "CPU": 6.0}, 5),
        ((0.5, 0.25), {"GPU": 2.0, "CPU": 6.0}, 6),
        ((0.1, 0.1), {"GPU": 1.0, "CPU": 6.0}, 6),
        ((1.0, 0.3), {"GPU": 1.0, "CPU": 6.0}, 3),
        ((1.0, 0.25), {"GPU": 1.0, "CPU": 2.0}, 2),
        ((1.0, 0.25), {"GPU": 2.0, "CPU": 99.0}, 5),
    ],
)
def test_ranks_fit_by_their_part_of_a_gpu(
    shares: tuple[float, float], total: dict[str, float], room: int
) -> None:
    job = _job("device=cuda", encoders=shares[0], language=shares[1])
    found, _ = rank_resources(job, total)
    assert capacity(job, found, total) == room


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_a_share_that_no_rank_can_have_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="gpus_per_rank"):
        _job(encoders=share)
