"""Megatron-core on CPUs: what it takes for granted about CUDA, answered without CUDA.

Megatron asks for the current CUDA device wherever it allocates, keeps CUDA events and
streams, saves the state of CUDA's random numbers before it computes a layer again, and names
the type of CUDA tensors. ``install`` answers these once per process;
``cuda_means_cpu`` covers the literal ``device="cuda"`` of building and of the optimizer.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CUDA_TYPES = {
    torch.float32: "torch.cuda.FloatTensor",
    torch.float16: "torch.cuda.HalfTensor",
    torch.bfloat16: "torch.cuda.BFloat16Tensor",
}


class _Inert:
    """Stands for a stream or an event: every method does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        del args, kwargs

    def _nothing(self, *args: object, **kwargs: object) -> None:
        del args, kwargs

    record = wait = synchronize = wait_stream = wait_event = record_event = _nothing


class _NoRngTracker:
    """Dropout is zero on CPUs and weights are drawn by name, so no state is tracked."""

    def is_initialized(self) -> bool:
        return True

    @contextlib.contextmanager
    def fork(self, name: str = "") -> Iterator[None]:
        del name
        yield

    def get_states(self) -> dict[str, Tensor]:
        return {}

    def set_states(self, states: dict[str, Tensor]) -> None:
        del states


class _CudaMeansCpu(TorchFunctionMode):
    """Maps ``device="cuda"`` to the CPU while it is active on the calling thread."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if "cuda" in str(kwargs.get("device", "")):
            kwargs["device"] = "cpu"
        kwargs.pop("pin_memory", None)
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return _CUDA_TYPES.get(args[0].dtype) or func(*args)
        return func(*args, **kwargs)


def cuda_means_cpu() -> contextlib.AbstractContextManager[object]:
    """Return a context in which ``device="cuda"`` means the CPU; nothing where CUDA is."""
    return contextlib.nullcontext() if torch.cuda.is_available() else _CudaMeansCpu()


def install() -> None:
    """Answer Megatron's questions about CUDA in this process; safe to call again."""
    if torch.cuda.is_available():
        return
    cpu, inert = torch.device("cpu"), _Inert()
    replacements: dict[str, object] = {
        "current_device": lambda: cpu,
        "synchronize": lambda *_: None,
        "current_stream": lambda *_: inert,
        "Stream": _Inert,
        "Event": _Inert,
        "stream": lambda *_: contextlib.nullcontext(),
    }
    for name, replacement in replacements.items():
        setattr(torch.cuda, name, replacement)
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import random as megatron_random

    vars(megatron_random)["_CUDA_RNG_STATE_TRACKER"] = _NoRngTracker()
    vars(megatron_random)["_CUDA_RNG_STATE_TRACKER_INITIALIZED"] = True
    vars(megatron_random)["_get_cuda_rng_state"] = lambda *_, **__: None
    vars(megatron_random)["_set_cuda_rng_state"] = lambda *_, **__: None
    if parallel_state._GLOBAL_MEMORY_BUFFER is None:
        parallel_state._set_global_memory_buffer()
