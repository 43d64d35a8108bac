"""What a measurement says that it was made on: a kind of GPU, or a CPU and its cores."""

import pytest

from actors import resources
from actors.hardware import gpu_kinds, group_hardware
from disagg_train.config.load import load_job
from disagg_train.errors import ConfigError
from tests.unit.config.jobs import JOB

TWO_KINDS = {"GPU": 8.0, "accelerator_type:H100": 1.0, "accelerator_type:L40S": 1.0}


@pytest.fixture(autouse=True)
def _cupy_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources.importlib.util, "find_spec", lambda name: name == "cupy")


def test_the_only_kind_of_gpu_needs_no_name() -> None:
    total = {"GPU": 8.0, "accelerator_type:H100": 1.0}
    assert group_hardware(load_job(JOB), total) == {"encoders": "H100", "language": "H100"}


def test_of_several_kinds_a_group_says_which() -> None:
    with pytest.raises(ConfigError, match=r"\['H100', 'L40S'\]; say which.*groups\.encoders"):
        group_hardware(load_job(JOB), TWO_KINDS)
    kinds = ["groups.encoders.accelerator=L40S", "groups.language.accelerator=H100"]
    assert group_hardware(load_job(JOB, kinds), TWO_KINDS) == {
        "encoders": "L40S",
        "language": "H100",
    }


def test_cpus_are_told_by_name_and_number_of_cores() -> None:
    found = group_hardware(load_job(JOB, ["device=cpu"]), {"CPU": 8.0})
    assert found["encoders"] == found["language"]
    assert found["encoders"].endswith(" cores")


def test_no_kind_is_known_where_one_is_not_certain() -> None:
    assert gpu_kinds(load_job(JOB), TWO_KINDS) == {}
    assert gpu_kinds(load_job(JOB), {"GPU": 8.0, "accelerator_type:H100": 1.0}) == {
        "encoders": "H100",
        "language": "H100",
    }
