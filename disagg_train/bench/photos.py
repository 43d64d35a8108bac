"""Photos of one size, each with a text of one length, drawn by (seed, key), for benchmarks."""

from collections.abc import Mapping, Sequence

import numpy as np

from disagg_train.data.processors import Processor
from disagg_train.data.source import IGNORE, Sample, Split
from disagg_train.errors import ConfigError
from disagg_train.planner.step_plan import SampleSize, Slot

_PLACEHOLDER = 0


class EqualPhotos:
    """One random photo, then random tokens, each with the one that follows it as its label.

    Args:
        encoders: the one that sees the photos.
        side: of a photo in pixels.
        seed: of the drawing.
        text_tokens: length of the text.
        vocab_size: tokens to draw from; token 0 stands for the photo.
        samples: number of training samples; none is held out.
    """

    def __init__(
        self,
        encoders: Mapping[str, Processor],
        seed: int = 0,
        side: int = 384,
        text_tokens: int = 295,
        vocab_size: int = 384,
        samples: int = 4096,
    ) -> None:
        if len(encoders) != 1:
            raise ConfigError(f"EqualPhotos are for one encoder; the job has {sorted(encoders)}")
        self._encoder, processor = next(iter(encoders.items()))
        self._seed, self._side, self._samples = seed, side, samples
        self._text_tokens, self._vocab_size = text_tokens, vocab_size
        self._count = processor.count((side, side))

    def sizes(self, split: Split) -> Sequence[SampleSize]:
        """Return the sizes of all samples of a split."""
        slots = {self._encoder: (Slot(0, self._count.tokens),)}
        inputs = {self._encoder: (self._count.input_tokens,)}
        length = self._count.tokens + self._text_tokens
        return [
            SampleSize(key, length, self._text_tokens, slots, inputs)
            for key in range(self._samples if split == "train" else 0)
        ]

    def load(self, key: int) -> Sample:
        """Draw the sample ``key``."""
        rng = np.random.default_rng((self._seed, key))
        text = rng.integers(1, self._vocab_size, size=self._text_tokens)
        tokens = self._count.tokens
        token_ids_S = np.concatenate([np.full(tokens, _PLACEHOLDER), text])
        labels_S = np.full(len(token_ids_S), IGNORE)
        labels_S[tokens - 1 : -1] = text
        photo = rng.standard_normal((self._side, self._side, 3), dtype=np.float32)
        return Sample(key, token_ids_S, labels_S, {self._encoder: [photo]})

    def text(self, token_ids: Sequence[int]) -> str:
        """Return tokens as text: nobody reads it."""
        return " ".join(map(str, token_ids))
