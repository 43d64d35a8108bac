"""Random samples of the sizes that kinds of data have: for measurements of balance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from disagg_train.bench.spreads import ENCODER, SPREADS
from disagg_train.data.image_processors import ImageGeometry
from disagg_train.data.source import IGNORE, Sample, Split
from disagg_train.planner.step_plan import SampleSize

_VOCABULARY = 300


class Drawn:
    """Random tokens and pixels; sizes of one of the ``SPREADS``, made smaller.

    Args:
        encoders: one vision encoder, whose ``merge`` the spreads are made for.
        seed: of the drawing.
        spread: name of the kind of data.
        divide: all sizes by this.
        samples: number of training samples; none is held out.
    """

    def __init__(
        self,
        encoders: Mapping[str, ImageGeometry],
        seed: int = 0,
        spread: str = "chart-to-table",
        divide: int = 8,
        samples: int = 4096,
    ) -> None:
        self._geometry, self._seed = encoders[ENCODER], seed
        self._sizes = SPREADS[spread].smaller(divide).samples(samples, seed)

    def sizes(self, split: Split) -> Sequence[SampleSize]:
        """Return the sizes of all samples of a split."""
        return self._sizes if split == "train" else ()

    def load(self, key: int) -> Sample:
        """Draw the sample ``key``."""
        size, rng = self._sizes[key], np.random.default_rng((self._seed, key))
        token_ids_S = rng.integers(1, _VOCABULARY, size.sequence_tokens)
        labels_S = np.full(size.sequence_tokens, IGNORE)
        labels_S[-size.target_tokens :] = token_ids_S[-size.target_tokens :]
        images = [self._image(patches, rng) for patches in size.input_tokens[ENCODER]]
        return Sample(key, token_ids_S, labels_S, {ENCODER: images}, size.sequence_tokens - 1)

    def _image(self, patches: int, rng: np.random.Generator) -> NDArray[Any]:
        """Return an image ``[H, W, C]`` of a column of ``merge`` patches per token."""
        side, merge = self._geometry.patch_size, self._geometry.merge
        return rng.random((side * merge, side * (patches // merge), 1), dtype=np.float32)

    def text(self, token_ids: Sequence[int]) -> str:
        """Return tokens as text: nobody reads it."""
        return " ".join(map(str, token_ids))
