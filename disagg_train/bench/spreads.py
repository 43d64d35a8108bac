"""Kinds of multimodal data by the spread of their sizes, as log-normal distributions. Pure.

What data of each kind look like, for a vision encoder with patches of 14 pixels that keeps images'
sizes (SigLIP 2 NaFlex, Qwen2-VL), four patches to a token, and a BPE tokenizer. Medians and spreads
were chosen after what the data sets' own papers say of their images and answers; they were not
fitted to the files, which are not here.
"""

from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from disagg_train.planner.step_plan import SampleSize, Slot

ENCODER = "vision"
PATCHES_PER_TOKEN = 4

_MOST_PATCHES = 4096
_MOST_ANSWER_TOKENS = 2048


@dataclass(frozen=True)
class Spread:
    """Sizes of one kind of data.

    Args:
        patches: median of an image.
        patches_sigma: standard deviation of the logarithm.
        prompt_tokens: of every sample.
        answer_tokens: median.
        answer_sigma: standard deviation of the logarithm.
        like: data sets of the kind.
        divide: drawn sizes by this.
    """

    patches: float
    patches_sigma: float
    prompt_tokens: int
    answer_tokens: float
    answer_sigma: float
    like: str
    divide: int = 1

    def smaller(self, divide: int) -> "Spread":
        """Return the same spread of sizes that are so many times smaller."""
        return replace(self, divide=divide)

    def samples(self, count: int, seed: int) -> tuple[SampleSize, ...]:
        """Draw the sizes of some samples."""
        rng = np.random.default_rng(seed)
        patches = _drawn(rng, self.patches, self.patches_sigma, count, _MOST_PATCHES)
        answers = _drawn(rng, self.answer_tokens, self.answer_sigma, count, _MOST_ANSWER_TOKENS)
        return tuple(
            self._sample(key, *self._divided(patch // PATCHES_PER_TOKEN, answer))
            for key, (patch, answer) in enumerate(
                zip(patches.tolist(), answers.tolist(), strict=True)
            )
        )

    def _divided(self, *sizes: int) -> tuple[int, ...]:
        return tuple(max(1, size // self.divide) for size in sizes)

    def _sample(self, key: int, image: int, answer: int) -> SampleSize:
        (prompt,) = self._divided(self.prompt_tokens)
        length = image + prompt + answer
        slots = {ENCODER: (Slot(0, image),)}
        return SampleSize(key, length, answer, slots, {ENCODER: (image * PATCHES_PER_TOKEN,)})


def _drawn(
    rng: np.random.Generator, median: float, sigma: float, count: int, most: int
) -> NDArray[np.int64]:
    values = np.exp(rng.normal(np.log(median), sigma, count))
    return np.clip(values, 1, most).astype(np.int64)


SPREADS = MappingProxyType(
    {
        "chart-to-table": Spread(
            900, 0.85, 16, 280, 0.85, "SynthChartNet, DePlot: charts of any size, whole tables"
        ),
        "chart QA": Spread(
            1500, 0.45, 24, 12, 0.7, "ChartQA: charts of web pages, a number or a few words"
        ),
        "object QA": Spread(
            1500, 0.2, 24, 8, 0.5, "VQAv2, TallyQA: COCO's photos of about 640 x 480, a word"
        ),
        "instruction": Spread(
            1500, 0.2, 40, 120, 0.8, "LLaVA-Instruct-150K: COCO's photos, a line to a page"
        ),
    }
)
"""By name."""
