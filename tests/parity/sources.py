"""A data set whose samples mix the inputs of several encoders in any order."""

from collections.abc import Mapping, Sequence

import numpy as np

from disagg_train.data.image_processors import ImageGeometry
from disagg_train.data.source import IGNORE, Sample, Split
from disagg_train.planner.step_plan import SampleSize, Slot

_VOCABULARY = 300
_MOST_INPUTS = 4


class Interleaved:
    """Samples of text with up to four inputs, each of any encoder and size, drawn by key.

    Some samples have no input at all, some inputs of one encoder only; inputs may follow each
    other directly or start a sequence.
    """

    def __init__(
        self,
        encoders: Mapping[str, ImageGeometry],
        seed: int = 0,
        samples: int = 64,
        most_targets: int = 5,
    ) -> None:
        self._encoders, self._seed, self._samples = dict(encoders), seed, samples
        self._most_targets = most_targets

    def sizes(self, split: Split) -> Sequence[SampleSize]:
        first = 0 if split == "train" else self._samples
        return [self._size(key) for key in range(first, first + self._samples)]

    def load(self, key: int) -> Sample:
        size, rng = self._size(key), np.random.default_rng((self._seed, key, 1))
        token_ids = rng.integers(1, _VOCABULARY, size.sequence_tokens)
        labels = np.full(size.sequence_tokens, IGNORE)
        labels[-size.target_tokens :] = rng.integers(1, _VOCABULARY, size.target_tokens)
        images = {
            encoder: [self._image(encoder, patches, rng) for patches in inputs]
            for encoder, inputs in size.input_tokens.items()
        }
        return Sample(key, token_ids, labels, images, size.sequence_tokens - 1)

    def text(self, token_ids: Sequence[int]) -> str:
        return " ".join(map(str, token_ids))

    def _size(self, key: int) -> SampleSize:
        rng = np.random.default_rng((self._seed, key))
        names = list(self._encoders)
        slots: dict[str, list[Slot]] = {}
        inputs: dict[str, list[int]] = {}
        position = 0
        for _ in range(rng.integers(0, _MOST_INPUTS + 1)):
            encoder = names[rng.integers(len(names))]
            position += int(rng.integers(0, 3))
            tokens = int(rng.integers(1, 8))
            slots.setdefault(encoder, []).append(Slot(position, tokens))
            inputs.setdefault(encoder, []).append(tokens * self._encoders[encoder].merge)
            position += tokens
        targets = int(rng.integers(1, self._most_targets + 1))
        return SampleSize(
            key,
            position + 1 + targets,
            targets,
            {encoder: tuple(found) for encoder, found in slots.items()},
            {encoder: tuple(found) for encoder, found in inputs.items()},
        )

    def _image(self, encoder: str, patches: int, rng: np.random.Generator) -> np.ndarray:
        side = self._encoders[encoder].patch_size
        return rng.random((side, side * patches, 1), dtype=np.float32)


class Shapes:
    """Samples of none to two inputs of one encoder, of given shapes, drawn by key.

    Args:
        encoders: the encoder.
        seed: of the drawing.
        inputs: shape, tokens, and tokens before they are merged, of each kind of input.
        samples: number of samples.
    """

    def __init__(
        self,
        encoders: Mapping[str, object],
        seed: int = 0,
        inputs: Sequence[tuple[Sequence[int], int, int]] = (),
        samples: int = 32,
    ) -> None:
        (self._encoder,) = encoders
        self._seed, self._inputs, self._samples = seed, inputs, samples

    def sizes(self, split: Split) -> Sequence[SampleSize]:
        first = 0 if split == "train" else self._samples
        return [self._size(key) for key in range(first, first + self._samples)]

    def load(self, key: int) -> Sample:
        size, rng = self._size(key), np.random.default_rng((self._seed, key, 1))
        token_ids = rng.integers(1, _VOCABULARY, size.sequence_tokens)
        labels = np.full(size.sequence_tokens, IGNORE)
        labels[-size.target_tokens :] = rng.integers(1, _VOCABULARY, size.target_tokens)
        inputs = [rng.normal(size=shape).astype(np.float32) for shape, _, _ in self._drawn(key)]
        return Sample(key, token_ids, labels, {self._encoder: inputs} if inputs else {})

    def text(self, token_ids: Sequence[int]) -> str:
        return " ".join(map(str, token_ids))

    def _drawn(self, key: int) -> list[tuple[Sequence[int], int, int]]:
        rng = np.random.default_rng((self._seed, key))
        return [self._inputs[rng.integers(len(self._inputs))] for _ in range(rng.integers(0, 3))]

    def _size(self, key: int) -> SampleSize:
        slots, position = [], 1
        for _, tokens, _ in self._drawn(key):
            slots.append(Slot(position, tokens))
            position += tokens + key % 3
        if not slots:
            return SampleSize(key, 6, 4)
        inputs = tuple(count for _, _, count in self._drawn(key))
        slots_of = {self._encoder: tuple(slots)}
        return SampleSize(key, position + 5, 4, slots_of, {self._encoder: inputs})
