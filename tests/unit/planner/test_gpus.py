"""Named GPUs: data sheets times one set of efficiencies, by group."""

import pytest

from disagg_train.config.load import load_job
from disagg_train.errors import ConfigError
from disagg_train.planner.gpus import GPUS, hardware_of, named_hardware
from tests.unit.config.jobs import JOB


def test_a_groups_own_gpus_go_before_the_others() -> None:
    job = load_job(JOB, ["groups.encoders.accelerator=L40S", "train.precision=bf16"])
    hardware = hardware_of(job, "H100")
    assert hardware.of("encoders") == GPUS["L40S"].machine()
    assert hardware.of("language") == GPUS["H100"].machine()


@pytest.mark.parametrize("override", ["groups.encoders.accelerator=T4", "name=other"])
def test_a_gpu_that_is_not_known_is_refused_with_those_that_are(override: str) -> None:
    kind = "T4" if override == "name=other" else "H100"
    with pytest.raises(ConfigError, match="'T4'; use one of H100, H200, A100, L40S, B200"):
        hardware_of(load_job(JOB, [override]), kind)


@pytest.mark.parametrize(
    ("kinds", "known"),
    [(("L40S", "H100"), True), (("T4", "H100"), False), (("L40S", None), False)],
)
def test_hardware_is_known_where_all_groups_name_known_gpus(
    kinds: tuple[str | None, ...], known: bool
) -> None:
    named = zip(("encoders", "language"), kinds, strict=True)
    job = load_job(JOB, [f"groups.{group}.accelerator={kind or 'null'}" for group, kind in named])
    hardware = named_hardware(job)
    assert (hardware is not None) == known
    if hardware is not None:
        assert hardware.of("encoders") == GPUS["L40S"].machine("fp32")
        assert hardware.default == hardware.of("language") == GPUS["H100"].machine("fp32")


@pytest.mark.parametrize("name", GPUS)
def test_nothing_achieves_more_than_its_data_sheet(name: str) -> None:
    gpu, machine = GPUS[name], GPUS[name].machine()
    assert machine.flops_per_s < gpu.flops_per_s
    assert machine.memory_bytes_per_s < gpu.memory_bytes_per_s
    assert machine.memory_bytes < gpu.memory_bytes
    assert machine.link_bytes_per_s < machine.node_bytes_per_s < gpu.node_bytes_per_s


def test_fp32_has_no_tensor_cores() -> None:
    h100 = GPUS["H100"]
    assert h100.machine("fp32").flops_per_s < h100.machine("fp16").flops_per_s / 10
