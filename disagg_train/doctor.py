"""Is this machine ready? One line per part, with the fix where something is wrong."""

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """What the doctor says of one part; ``fix`` is empty where all is well."""

    part: str
    state: str
    fix: str = ""


def examine() -> Iterator[Finding]:
    """Yield the findings, quick ones first."""
    yield _python()
    for package in ("torch", "megatron-core", "ray", "numpy", "pydantic"):
        yield _package(package)
    yield from _gpus()
    yield _extra("cupy", "NCCL boundaries between GPU groups", "pip install 'disagg_train[cu13]'")
    yield _extra("transformer_engine", "GPU layers", "pip install 'disagg_train[cu13]'")
    yield _extra("transformers", "pretrained models, `chat` data", "pip install 'disagg_train[hf]'")
    yield _extra("sklearn", "the data set `digits`", "pip install 'disagg_train[demo]'")
    yield _nccl()
    yield _ray_address()
    yield _ports()


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    right = sys.version_info[:2] == (3, 12)
    return Finding("python", version, "" if right else "use Python 3.12")


def _package(name: str) -> Finding:
    try:
        return Finding(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "missing", "pip install disagg_train")


def _gpus() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        yield Finding("GPU", "none; ranks run on CPUs with gloo")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory >> 30
        yield Finding(f"GPU {index}", f"{properties.name}, {memory} GiB")


def _extra(module: str, needed_for: str, fix: str) -> Finding:
    if importlib.util.find_spec(module) is not None:
        return Finding(module, "installed")
    import torch

    wanted = torch.cuda.is_available() or module == "sklearn"
    return Finding(module, f"not installed (for {needed_for})", fix if wanted else "")


def _nccl() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("NCCL", "not needed without a GPU")
    version = ".".join(map(str, torch.cuda.nccl.version()))
    installed = [
        d.name for d in importlib.metadata.distributions() if d.name.startswith("nvidia-nccl")
    ]
    if len(installed) > 1:
        fix = f"uninstall one of {installed}: both install the same file"
        return Finding("NCCL", f"torch has {version}", fix)
    if importlib.util.find_spec("cupy") is None:
        return Finding("NCCL", f"torch has {version}")
    return _same_nccl(version)


def _same_nccl(version: str) -> Finding:
    from disagg_train.boundary.nccl import check_same_nccl
    from disagg_train.errors import ConfigError

    try:
        check_same_nccl()
    except ConfigError as error:
        return Finding("NCCL", f"torch has {version}, CuPy another or none", str(error))
    return Finding("NCCL", f"torch and CuPy have {version}")


def _ray_address() -> Finding:
    address = os.environ.get("RAY_ADDRESS", "")
    return Finding("Ray cluster", address or "none named; a local one is started per run")


def _ports() -> Finding:
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    except OSError:
        return Finding("ports", "not known which ones this system gives out")
    return _clear_of_ray(*map(int, text.split()))


def _clear_of_ray(first: int, last: int) -> Finding:
    """Return whether gloo and NCCL may take ports that Ray's workers want."""
    from actors.rendezvous import RAY_PORTS

    state = f"{first}-{last} are given out"
    if last < RAY_PORTS[0] or first > RAY_PORTS[-1]:
        return Finding("ports", state)
    fix = f"sysctl -w net.ipv4.ip_local_port_range='32768 60999': {RAY_PORTS[0]}-{RAY_PORTS[-1]}"
    return Finding("ports", state, f"{fix} are Ray's")
