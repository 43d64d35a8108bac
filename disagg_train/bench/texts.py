"""Texts of one length, drawn by (seed, key): microbatches of equal shape for benchmarks."""

from collections.abc import Mapping, Sequence

import numpy as np

from disagg_train.data.image_processors import ImageGeometry
from disagg_train.data.source import IGNORE, Sample, Split
from disagg_train.planner.step_plan import SampleSize


class EqualTexts:
    """Random tokens; each but the last has the one that follows it as its label.

    Args:
        encoders: none of them sees anything.
        seed: of the drawing.
        num_tokens: length of every sample.
        vocab_size: tokens to draw from.
        samples: number of training samples; none is held out.
    """

    def __init__(
        self,
        encoders: Mapping[str, ImageGeometry],
        seed: int = 0,
        num_tokens: int = 64,
        vocab_size: int = 384,
        samples: int = 4096,
    ) -> None:
        del encoders
        self._seed, self._num_tokens, self._vocab_size = seed, num_tokens, vocab_size
        self._samples = samples

    def sizes(self, split: Split) -> Sequence[SampleSize]:
        """Return the sizes of all samples of a split."""
        keys = range(self._samples if split == "train" else 0)
        return [SampleSize(key, self._num_tokens, self._num_tokens - 1) for key in keys]

    def load(self, key: int) -> Sample:
        """Draw the sample ``key``."""
        rng = np.random.default_rng((self._seed, key))
        token_ids_S = rng.integers(self._vocab_size, size=self._num_tokens)
        return Sample(key, token_ids_S, np.append(token_ids_S[1:], IGNORE))

    def text(self, token_ids: Sequence[int]) -> str:
        """Return tokens as text: nobody reads it."""
        return " ".join(map(str, token_ids))
