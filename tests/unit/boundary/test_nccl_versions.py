"""One NCCL per process, and a plain word where there is none or there are two."""

import sys

import pytest
import torch

from disagg_train.boundary import nccl as nccl_file
from disagg_train.boundary.nccl import check_same_nccl, cupy_nccl_version
from disagg_train.errors import ConfigError
from tests.unit.boundary.fake_nccl import install


def test_one_nccl_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, version=23007)
    monkeypatch.setattr(nccl_file, "torch_nccl_version", lambda: (2, 30, 7))
    check_same_nccl()


def test_two_nccls_in_one_process_are_refused_with_what_to_uninstall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, version=22809)
    monkeypatch.setattr(nccl_file, "torch_nccl_version", lambda: (2, 30, 7))
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    assert cupy_nccl_version() == (2, 28, 9)
    with pytest.raises(ConfigError, match=r"2\.28\.9 and torch 2\.30\.7") as caught:
        check_same_nccl()
    assert "pip uninstall cupy-cuda12x nvidia-nccl-cu12" in str(caught.value)


def test_without_cupy_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cupy", "cupy.cuda", "cupy.cuda.nccl"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"install 'disagg_train\[cu13\]'"):
        cupy_nccl_version()


def test_a_cupy_without_nccl_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    monkeypatch.setattr(sys.modules["cupy.cuda.nccl"], "available", False)
    with pytest.raises(ConfigError, match="this CuPy finds no NCCL"):
        cupy_nccl_version()
