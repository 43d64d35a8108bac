"""Which tensors NCCL can carry, and what it calls their types."""

import torch
from torch import Tensor

from disagg_train.errors import BoundaryError

NCCL_NAMES = {
    torch.float32: "NCCL_FLOAT32",
    torch.bfloat16: "NCCL_BFLOAT16",
    torch.float16: "NCCL_FLOAT16",
    torch.float64: "NCCL_FLOAT64",
    torch.int64: "NCCL_INT64",
    torch.int32: "NCCL_INT32",
    torch.int8: "NCCL_INT8",
    torch.uint8: "NCCL_UINT8",
    torch.float8_e4m3fn: "NCCL_UINT8",
    torch.float8_e5m2: "NCCL_UINT8",
}
"""What NCCL calls the types that can be sent; CuPy names no fp8, so it goes as bytes."""


def check_sendable(name: str, buffer: Tensor) -> None:
    """Refuse a buffer that NCCL has no type for, or would send wrongly.

    Args:
        name: of the boundary, for the error.
        buffer: to be sent or filled.

    Raises:
        BoundaryError: its values are of no known type, or its memory has gaps.
    """
    if buffer.dtype not in NCCL_NAMES:
        known = sorted(str(dtype).removeprefix("torch.") for dtype in NCCL_NAMES)
        raise BoundaryError(f"{name}: cannot send {buffer.dtype}; use one of {known}")
    if not buffer.is_contiguous():
        raise BoundaryError(
            f"{name}: a buffer of shape {tuple(buffer.shape)} with strides {buffer.stride()} is "
            f"not contiguous, and NCCL sends memory as it lies; send .contiguous()"
        )
