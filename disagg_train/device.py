"""The one face of CPU and CUDA: which device a rank computes on, its streams and its NCCL."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from disagg_train.errors import ConfigError

Kind = Literal["cpu", "cuda"]
NcclVersion = tuple[int, int, int]

_SHARED_GPU_NCCL: NcclVersion = (2, 30, 0)
_HIGH_PRIORITY = -1
_MILLI = 1e-3


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

    def settle(self) -> None:
        """Make the host wait for the current stream; once a step, where ranks must agree."""
        if self.kind == "cuda":
            torch.cuda.current_stream(self.torch_device).synchronize()


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> Device:
    """Return the device for this process.

    Raises:
        ConfigError: CUDA is asked for and this process sees no GPU.
    """
    has_gpu = torch.cuda.is_available() and not os.environ.get("DISAGG_TRAIN_FORCE_CPU")
    if wanted == "cuda" and not has_gpu:
        raise ConfigError("device: cuda, but this process sees no GPU; set device: cpu or auto")
    return Device("cuda" if has_gpu and wanted != "cpu" else "cpu")


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Import others' modules without torch's compiler, where there is no GPU to compile for.

    Megatron puts ``torch.compile`` on fused functions, which a CPU does not run; loading the
    compiler for that takes as long as everything else that it imports.
    """
    if choose_device("auto").kind == "cuda":
        yield
        return
    compiler = torch.compile
    torch.compile = lambda function=None, **options: function or (lambda later: later)
    try:
        yield
    finally:
        torch.compile = compiler


@dataclass(frozen=True)
class Moment:
    """A point in a rank's work.

    Args:
        number: of the moment, by which earlier ones are told from later ones.
        host_s: when the host came to it, in seconds since the epoch.
        event: in the current stream, where a GPU comes to it later; None on a CPU.
    """

    number: int
    host_s: float
    event: "torch.cuda.Event | None" = None


class Clock:
    """Tells when a rank's work ran: on a GPU by events in its stream, as the host only launches.

    Events tell times between each other alone, so each time that the host waits for the stream
    is an anchor: the host's time and the GPU's are one there.

    Args:
        device: of the rank.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._count = 0
        self._anchor: Moment | None = None

    def now(self) -> Moment:
        """Return this moment of the current stream; the host does not wait."""
        event = None
        if self._device.kind == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        self._count += 1
        return Moment(self._count, time.time(), event)

    def settle(self) -> None:
        """Make the host wait for the current stream, and take that for an anchor."""
        moment = self.now()
        self._device.settle()
        self._anchor = Moment(moment.number, time.time(), moment.event)

    def seconds(self, moment: Moment) -> float:
        """Return when a moment was, in seconds since the epoch.

        Of what came after the last anchor, a GPU may not have come to its moment; then that is
        when the host came to it.
        """
        anchor = self._anchor
        if moment.event is None or anchor is None or moment.number > anchor.number:
            return moment.host_s
        return anchor.host_s - float(moment.event.elapsed_time(anchor.event)) * _MILLI


class Mark:
    """A point in a stream's work; on a CPU, work is done before its mark is made."""

    def __init__(self, stream: "torch.cuda.Stream | None") -> None:
        self._event = None
        if stream is not None:
            self._event = torch.cuda.Event()
            self._event.record(stream)

    def query(self) -> bool:
        """Return whether the work before the mark is done; never blocks."""
        return self._event is None or bool(self._event.query())

    def hold_back(self, stream: "torch.cuda.Stream | None") -> None:
        """Make ``stream`` wait for the mark; the host goes on."""
        if self._event is not None and stream is not None:
            stream.wait_event(self._event)


class SideStream:
    """A stream beside the one that computes, first to get the GPU's free units; inert on CPUs.

    Args:
        device: whose stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device, priority=_HIGH_PRIORITY)

    @property
    def handle(self) -> int:
        """The stream as CUDA libraries take it."""
        return int(self._stream.cuda_stream) if self._stream is not None else 0

    def follow(self) -> None:
        """Make this stream wait for what the current one holds; the host goes on."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def mark(self) -> Mark:
        """Return the point that this stream's work has reached."""
        return Mark(self._stream)

    def mark_current(self) -> Mark:
        """Return the point that the current stream's work has reached."""
        return Mark(self._current())

    def hold_back_current(self, mark: Mark) -> None:
        """Make the current stream wait for ``mark``; the host goes on."""
        mark.hold_back(self._current())

    def keep(self, tensor: torch.Tensor) -> None:
        """Let nobody else have the tensor's memory before this stream is past its work."""
        if self._stream is not None:
            tensor.record_stream(self._stream)

    def finish(self) -> None:
        """Make the host wait for all work of this stream; not for the steady state."""
        if self._stream is not None:
            self._stream.synchronize()

    def _current(self) -> "torch.cuda.Stream | None":
        return torch.cuda.current_stream(self._device) if self._stream is not None else None


def use(device: torch.device) -> None:
    """Make ``device`` the calling thread's own; CUDA keeps one per thread."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def torch_nccl_version() -> NcclVersion:
    """Return the version of the NCCL that torch loaded; needs no GPU.

    Raises:
        ConfigError: this torch is built without NCCL.
    """
    try:
        major, minor, patch, *_ = torch.cuda.nccl.version()
    except (AttributeError, RuntimeError) as error:
        raise ConfigError(
            f"this torch ({torch.__version__}) has no NCCL: {error}; install a torch that is "
            f"built for CUDA, or set device: cpu"
        ) from None
    return int(major), int(minor), int(patch)


def version_text(version: NcclVersion) -> str:
    """Return a version as people write it."""
    return ".".join(map(str, version))


def check_gpu_sharing(gpus_per_rank: float, version: NcclVersion) -> None:
    """Refuse several ranks on one GPU where the NCCL found cannot do that.

    Raises:
        ConfigError: ``gpus_per_rank`` is below 1 and NCCL older than 2.30.
    """
    if gpus_per_rank < 1 and version < _SHARED_GPU_NCCL:
        raise ConfigError(
            f"gpus_per_rank={gpus_per_rank:g} puts several ranks on one GPU, which needs NCCL "
            f"2.30 or newer; torch loaded {version_text(version)}. Set gpus_per_rank: 1, or "
            f"install a torch that brings NCCL 2.30 (2.15 or newer, for CUDA 13)"
        )
