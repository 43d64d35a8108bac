"""How the input of an encoder is counted without being decoded, and decoded."""

from dataclasses import dataclass
from typing import BinaryIO, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Modality = Literal["image", "audio"]


@dataclass(frozen=True)
class TokenCount:
    """What an encoder makes of one input.

    Args:
        input_tokens: that the encoder computes on (patches, pairs of frames); class tokens and
            padding are not counted.
        tokens: that reach the LLM.
    """

    input_tokens: int
    tokens: int


class Processor(Protocol):
    """Prepares the inputs of one encoder.

    Two processors that count alike have one ``repr``: an index of sizes is kept by it.
    """

    @property
    def modality(self) -> Modality:
        """What it reads."""

    def count(self, size: tuple[int, ...]) -> TokenCount:
        """Return the tokens of an input, from what its header says.

        Args:
            size: (height, width) in pixels, or (samples, samples per second).

        Raises:
            DataError: the encoder cannot take such an input.
        """

    def load(self, file: BinaryIO) -> NDArray[np.float32]:
        """Decode an input and make of it what the encoder takes.

        Returns:
            An image ``[height, width, channels]``, or frames ``[frames, values]``.

        Raises:
            DataError: it cannot be decoded.
        """
