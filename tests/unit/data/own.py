"""Classes that are to be encoders of one's own; nothing here needs torch."""

from typing import Any, BinaryIO

import numpy as np


class Good:
    """Fits the contract: a token per 4 columns."""

    def __init__(self, columns: int = 4) -> None: ...

    def forward(self, samples: list[Any]) -> Any: ...

    @staticmethod
    def count(size: tuple[int, ...], columns: int = 4) -> int:
        if size[1] % columns:
            raise ValueError(f"{size[1]} is no multiple of {columns}")
        return size[1] // columns


class Recordings(Good):
    """Reads audio by itself, and takes any option."""

    modality = "audio"

    @staticmethod
    def count(size: tuple[int, ...], **_: Any) -> int:
        return size[0] // size[1]

    @classmethod
    def load(cls, file: BinaryIO, **_: Any) -> Any:
        return np.frombuffer(file.read(), np.int8).reshape(-1, 1)


class Cut(Good):
    """Declares tensor parallelism."""

    parallel = ("tp",)

    def __init__(self, groups: Any, columns: int = 4) -> None: ...


class ForgetsGroups(Good):
    """Declares a degree, but takes no groups."""

    parallel = ("tp",)


class DeclaresNonsense(Good):
    """Declares a degree that there is not."""

    parallel = ("dp",)


class CountsOnAnInstance(Good):
    """Has a count that needs weights."""

    def count(self, size: tuple[int, ...]) -> int:  # type: ignore[override]
        return 1


class CannotCount:
    """Has no count."""

    def forward(self, samples: list[Any]) -> Any: ...


class CannotHear(Good):
    """Reads audio, but does not say how."""

    modality = "audio"


class Smells(Good):
    """Reads something that there is not."""

    modality = "smell"


class CountsHalves(Good):
    """Makes half a token of everything."""

    @staticmethod
    def count(size: tuple[int, ...], columns: int = 4) -> Any:
        return 0.5


def function() -> None:
    """Is no class."""
