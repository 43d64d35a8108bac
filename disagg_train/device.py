"""The one face of CPU and CUDA: which device a rank computes on."""

import os
from dataclasses import dataclass
from typing import Literal

import torch

from disagg_train.errors import ConfigError

Kind = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Device:
    """The device of one rank.

    Args:
        kind: ``cpu`` or ``cuda``.
        index: number of the GPU among those that the process sees.
    """

    kind: Kind
    index: int = 0

    @property
    def torch_device(self) -> torch.device:
        """The device as torch names it."""
        return torch.device("cuda", self.index) if self.kind == "cuda" else torch.device("cpu")

    @property
    def collective_backend(self) -> str:
        """Backend of torch's own process groups on this device."""
        return "nccl" if self.kind == "cuda" else "gloo"

    def activate(self) -> None:
        """Make this the calling thread's device; on CPUs, compute on one thread per rank."""
        if self.kind == "cuda":
            torch.cuda.set_device(self.index)
        else:
            torch.set_num_threads(1)


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> Device:
    """Return the device for this process.

    Raises:
        ConfigError: CUDA is asked for and this process sees no GPU.
    """
    has_gpu = torch.cuda.is_available() and not os.environ.get("DISAGG_TRAIN_FORCE_CPU")
    if wanted == "cuda" and not has_gpu:
        raise ConfigError("device: cuda, but this process sees no GPU; set device: cpu or auto")
    return Device("cuda" if has_gpu and wanted != "cpu" else "cpu")
