"""Photos whose captions are to be generated."""

from dataclasses import replace

import numpy as np

from disagg_train.data.source import Sample
from tests.parity.photos import Photos


class Captions(Photos):
    """As ``Photos``; decoding begins where the caption does."""

    def load(self, key: int) -> Sample:
        sample = super().load(key)
        return replace(sample, answer_start=int((sample.labels_S >= 0).argmax()) + 1)


class Recordings(Captions):
    """The same with sound in the place of photos: two frames of eight mel bins per token."""

    def load(self, key: int) -> Sample:
        sample, rng = super().load(key), np.random.default_rng((self._seed, key, 2))
        frames = {
            name: [rng.normal(size=(32, 8)).astype(np.float32) for _ in photos]
            for name, photos in sample.inputs.items()
        }
        return replace(sample, inputs=frames)
