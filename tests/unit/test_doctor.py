"""What the doctor says of NCCL, where torch and CuPy both bring one."""

import pytest

from disagg_train import doctor
from disagg_train.boundary import nccl
from tests.unit.boundary.fake_nccl import install


@pytest.mark.parametrize(("version", "well"), [(23007, True), (22809, False)])
def test_two_different_nccls_are_found(
    monkeypatch: pytest.MonkeyPatch, version: int, well: bool
) -> None:
    install(monkeypatch, version)
    monkeypatch.setattr(nccl, "torch_nccl_version", lambda: (2, 30, 7))
    finding = doctor._same_nccl("2.30.7")
    assert (finding.fix == "") is well
    if well:
        assert finding.state == "torch and CuPy have 2.30.7"
    else:
        assert "uninstall" in finding.fix


@pytest.mark.parametrize(
    ("first", "last", "well"),
    [(32768, 60999, True), (1024, 10001, True), (1024, 65535, False), (15000, 16000, False)],
)
def test_ports_that_ray_wants_are_not_to_be_given_out(first: int, last: int, well: bool) -> None:
    assert (doctor._clear_of_ray(first, last).fix == "") is well
