"""Reading numbers off strips of scanned digits: a small real vision-language task.

The 1,797 scans of 8 x 8 pixels that scikit-learn ships (UCI optical recognition of
handwritten digits) are set side by side into strips of 1 to 12 digits, so sizes differ per
sample; the target is the number as text. Training and evaluation use disjoint scans.
Some samples are text only: a number to be repeated.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from disagg_train.data import byte_tokenizer as tokenizer
from disagg_train.data.image_processors import ImageGeometry
from disagg_train.data.own_encoders import OwnProcessor
from disagg_train.data.processors import Processor
from disagg_train.data.source import IGNORE, Sample, Split
from disagg_train.errors import ConfigError, DataError
from disagg_train.planner.step_plan import SampleSize, Slot

_SIDE = 8
_BRIGHTEST = 16.0
_EVALUATION_SCANS = 300
_FILE = "datasets/data/digits.csv.gz"


class DigitsSource:
    """Strips of scanned digits, drawn by (seed, key).

    Args:
        encoders: processors by encoder; one of them, a ViT's or one of your own, sees the
            strips.
        seed: of the drawing.
        samples: number of training samples.
        evaluation_samples: number of held-out samples.
        max_digits: longest strip.
        text_only: fraction of samples without an image.
        encoder: which encoder sees the strips; needed where there are several.
    """

    def __init__(
        self,
        encoders: Mapping[str, Processor],
        seed: int = 0,
        samples: int = 16_384,
        evaluation_samples: int = 256,
        max_digits: int = 12,
        text_only: float = 0.1,
        encoder: str | None = None,
    ) -> None:
        names = [encoder] if encoder else list(encoders)
        if encoders and names[0] not in encoders:
            raise ConfigError(f"data.options.encoder: {encoder!r} is none of {sorted(encoders)}")
        self.encoder = names[0] if encoders else ""
        geometry = encoders.get(self.encoder)
        if geometry is not None and not isinstance(geometry, ImageGeometry | OwnProcessor):
            raise ConfigError(
                f"data.kind: `digits` has strips of many sizes, which only an encoder of kind "
                f"`vit` or one of your own takes; modules.{self.encoder} is none"
            )
        self.geometry = geometry
        self.seed, self.max_digits, self.text_only = seed, max_digits, text_only
        self.num_train, self.num_evaluation = samples, evaluation_samples
        self._scans: dict[Split, tuple[NDArray[np.float32], NDArray[np.int64]]] = {}

    def sizes(self, split: Split) -> Sequence[SampleSize]:
        """Return the sizes of all samples of a split, without loading a pixel."""
        first = 0 if split == "train" else self.num_train
        count = self.num_train if split == "train" else self.num_evaluation
        return [self._size(key) for key in range(first, first + count)]

    def load(self, key: int) -> Sample:
        """Draw the sample ``key``."""
        num_digits, has_image, rng = self._shape(key)
        pixels, labels = self._split_scans(self._split(key))
        chosen = rng.integers(len(labels), size=num_digits)
        number = "".join(str(label) for label in labels[chosen])
        prompt, answer = self._prompt(num_digits, has_image, number), tokenizer.encode(number)
        answer = [*answer, tokenizer.END]
        room = self._answer_room(key, num_digits)
        token_ids = np.array([*prompt, *answer] + [tokenizer.PADDING] * (room - len(answer)))
        targets = np.full(len(token_ids), IGNORE)
        targets[len(prompt) - 1 : len(prompt) - 1 + len(answer)] = answer
        strip = np.concatenate(list(pixels[chosen]), axis=1)[:, :, None]
        images = {self.encoder: [strip]} if has_image else {}
        return Sample(key, token_ids, targets, images, answer_start=len(prompt))

    def text(self, token_ids: Sequence[int]) -> str:
        """Return generated tokens as text, up to the end of the answer."""
        return tokenizer.decode(token_ids)

    def _split(self, key: int) -> Split:
        return "train" if key < self.num_train else "evaluation"

    def _shape(self, key: int) -> tuple[int, bool, np.random.Generator]:
        rng = np.random.default_rng((self.seed, key))
        num_digits = int(rng.integers(1, self.max_digits + 1))
        has_image = bool(rng.random() >= self.text_only) and self.geometry is not None
        return num_digits, has_image, rng

    def _size(self, key: int) -> SampleSize:
        num_digits, has_image, _ = self._shape(key)
        slots, patches = {}, {}
        if has_image and self.geometry is not None:
            tokens = self.geometry.num_tokens(_SIDE, _SIDE * num_digits)
            patches = {self.encoder: (self.geometry.num_patches(_SIDE, _SIDE * num_digits),)}
            slots = {self.encoder: (Slot(1, tokens),)}
        prompt = len(self._prompt(num_digits, has_image, "0" * num_digits))
        length = prompt + self._answer_room(key, num_digits)
        return SampleSize(key, length, num_digits + 1, slots, patches)

    def _prompt(self, num_digits: int, has_image: bool, number: str) -> list[int]:
        if not has_image or self.geometry is None:
            return [tokenizer.START, *tokenizer.encode(number + "=")]
        placeholders = self.geometry.num_tokens(_SIDE, _SIDE * num_digits)
        return [tokenizer.START, *[tokenizer.PADDING] * placeholders, *tokenizer.encode("=")]

    def _answer_room(self, key: int, num_digits: int) -> int:
        """Return the answer's length; a held-out sample must not tell it by its size."""
        return (num_digits if self._split(key) == "train" else self.max_digits) + 1

    def _split_scans(self, split: Split) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if split not in self._scans:
            pixels, digits = _load_scans()
            order = np.random.default_rng(0).permutation(len(digits))
            held_out, rest = order[:_EVALUATION_SCANS], order[_EVALUATION_SCANS:]
            chosen = rest if split == "train" else held_out
            self._scans[split] = (pixels[chosen], digits[chosen])
        return self._scans[split]


def _load_scans() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Read the scans ``[1797, 8, 8]`` and their digits from scikit-learn's files.

    Importing scikit-learn itself takes seconds on every rank; its file is all we need.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError(
            "the data set `digits` comes with scikit-learn; pip install 'disagg_train[demo]'"
        )
    table = np.loadtxt(Path(package.origin).parent / _FILE, delimiter=",")
    pixels = table[:, :-1].reshape(-1, _SIDE, _SIDE) / _BRIGHTEST
    return pixels.astype(np.float32), table[:, -1].astype(np.int64)
