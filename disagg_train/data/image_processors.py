"""Images as the vision encoders take them: counted by their header, decoded on the ranks.

Pixels come from the checkpoint's own image processor where it has one, through Pillow. An
image's EXIF rotation is not applied; transparency is dropped, and grey becomes RGB.
"""

import json
import math
import threading
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

from disagg_train.config.models import ClipConfig, SiglipConfig
from disagg_train.data.processors import Modality, TokenCount
from disagg_train.errors import ConfigError, DataError

Pixels = NDArray[np.float32]
"""An image, ``[height, width, channels]``."""

MAX_PIXELS = 1 << 27
"""Larger images are refused: a small file can hold a picture that fills the memory."""
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""Where a checkpoint says how its inputs are prepared."""
_MAX_ASPECT = 200
_BRIGHTEST = 255.0
_SIGLIP2_PATCHES = 256
_building = threading.Lock()


@dataclass(frozen=True)
class ImageGeometry:
    """Images of any size, for a plain ViT: patches in [0, 1].

    Args:
        patch_size: side of a patch in pixels.
        merge: consecutive patches of a column that the projector joins into one token.
        max_patches_per_side: longest side in patches.
        num_channels: 1 (grey) or 3 (RGB).
    """

    patch_size: int
    merge: int
    max_patches_per_side: int = 64
    num_channels: int = 1
    modality: ClassVar[Modality] = "image"

    def num_patches(self, height: int, width: int) -> int:
        """Return the patches of an image that is taken as it is.

        Raises:
            DataError: the sides are no multiples of the patch, or the patches of ``merge``.
        """
        if height % self.patch_size or width % self.patch_size:
            raise DataError(
                f"an image of {height} x {width} pixels does not divide into patches of "
                f"{self.patch_size}; resize or pad it"
            )
        patches = (height // self.patch_size) * (width // self.patch_size)
        if patches % self.merge:
            raise DataError(
                f"an image of {height} x {width} pixels has {patches} patches, which do not "
                f"merge by {self.merge}; resize it or change the projector's `merge`"
            )
        return patches

    def num_tokens(self, height: int, width: int) -> int:
        """Return the tokens that reach the LLM, of an image that is taken as it is."""
        return self.num_patches(height, width) // self.merge

    def count(self, size: tuple[int, ...]) -> TokenCount:
        """Return the tokens of an image, which ``load`` resizes to the nearest fitting size."""
        patches = self.num_patches(*self._target(size))
        return TokenCount(patches, patches // self.merge)

    def load(self, file: BinaryIO) -> Pixels:
        """Decode an image, and resize it to the nearest size that divides into patches."""
        image = decode_image(file, "L" if self.num_channels == 1 else "RGB")
        height, width = self._target((image.height, image.width))
        if (image.height, image.width) != (height, width):
            image = image.resize((width, height))
        pixels = np.asarray(image, np.float32).reshape(height, width, self.num_channels)
        return np.divide(pixels, _BRIGHTEST, dtype=np.float32)

    def _target(self, size: tuple[int, ...]) -> tuple[int, int]:
        """Return the nearest (height, width) whose columns divide into whole tokens."""
        height, width = _checked(size)
        if self.merge > self.max_patches_per_side:
            raise DataError(
                f"a column has at most {self.max_patches_per_side} patches, so no "
                f"{self.merge} of them merge; change the projector's `merge`"
            )
        step, most = self.patch_size * self.merge, self.max_patches_per_side // self.merge
        rows = min(max(round(height / step), 1), most)
        columns = min(max(round(width / self.patch_size), 1), self.max_patches_per_side)
        return rows * step, columns * self.patch_size


class SquareImages:
    """Images resized, and CLIP's cut, to one square: CLIP and SigLIP.

    Args:
        model: sizes of the encoder.
        merge: consecutive patches that the projector joins.
        folder: of a checkpoint with an image processor; None makes the family's usual one.
    """

    modality: Modality = "image"

    def __init__(self, model: ClipConfig | SiglipConfig, merge: int, folder: Path | None) -> None:
        self._model, self._folder = model, folder
        patches = model.patches_per_side**2
        self._tokens = TokenCount(patches, patches // merge)

    def __repr__(self) -> str:
        return f"SquareImages({self._tokens})"

    def count(self, size: tuple[int, ...]) -> TokenCount:
        """Return the tokens of an image: as many whatever its size."""
        _checked(size)
        return self._tokens

    def load(self, file: BinaryIO) -> Pixels:
        """Decode an image and give it to the model's image processor."""
        image = decode_image(file)
        with _building:
            processor = self._processor
        pixels = _channels_last(processor(image)["pixel_values"][0])
        side = self._model.image_size
        if pixels.shape != (side, side, self._model.num_channels):
            raise DataError(
                f"the image processor in {self._folder} makes images of shape {pixels.shape}, "
                f"the model takes {(side, side, self._model.num_channels)}; fix model.image_size "
                f"or preprocessor_config.json"
            )
        return pixels

    @cached_property
    def _processor(self) -> Any:
        if self._folder is not None:
            return _image_processor_of(self._folder)
        import transformers

        side = self._model.image_size
        square = {"height": side, "width": side}
        if isinstance(self._model, ClipConfig):
            return transformers.CLIPImageProcessorPil(
                size={"shortest_edge": side}, crop_size=square
            )
        return transformers.SiglipImageProcessorPil(size=square)


class NaflexImages:
    """Images that keep their shape, for SigLIP 2 NaFlex.

    Args:
        patch_size: side of a patch in pixels.
        merge: patches that the projector joins, squares of 1, 4, 9, ...
        max_num_patches: of an image; None takes the image processor's.
        folder: of a checkpoint with an image processor; None makes the family's usual one.

    Raises:
        ConfigError: one token has more patches than an image.
    """

    modality: Modality = "image"

    def __init__(
        self, patch_size: int, merge: int, max_num_patches: int | None, folder: Path | None
    ) -> None:
        most = max_num_patches or _max_num_patches(folder)
        if merge > most:
            raise ConfigError(
                f"projector.merge={merge}, but an image has at most {most} patches; raise "
                f"max_num_patches or merge fewer"
            )
        self._merge, self._folder = merge, folder
        self._unit, self._most_tokens = patch_size * math.isqrt(merge), most // merge

    def __repr__(self) -> str:
        return f"NaflexImages({self._merge}, {self._unit}, {self._most_tokens})"

    def count(self, size: tuple[int, ...]) -> TokenCount:
        """Return the tokens of an image, which depend on its shape."""
        height, width = self._target(size)
        tokens = (height // self._unit) * (width // self._unit)
        return TokenCount(tokens * self._merge, tokens)

    def load(self, file: BinaryIO) -> Pixels:
        """Decode an image and resize it as the model's image processor would."""
        from transformers.image_utils import SizeDict

        image = decode_image(file)
        height, width = self._target((image.height, image.width))
        with _building:
            processor = self._processor
        pixels_CHW = np.moveaxis(np.asarray(image), -1, 0)
        size = SizeDict(height=height, width=width)
        pixels_CHW = processor.resize(pixels_CHW, size, resample=processor.resample)
        if processor.do_rescale:
            pixels_CHW = processor.rescale(pixels_CHW, processor.rescale_factor)
        if processor.do_normalize:
            pixels_CHW = processor.normalize(pixels_CHW, processor.image_mean, processor.image_std)
        return _channels_last(pixels_CHW)

    def _target(self, size: tuple[int, ...]) -> tuple[int, int]:
        return naflex_size(*_checked(size), self._unit, self._most_tokens)

    @cached_property
    def _processor(self) -> Any:
        if self._folder is not None:
            return _image_processor_of(self._folder)
        import transformers

        return transformers.Siglip2ImageProcessorPil()


@lru_cache(maxsize=4096)
def naflex_size(height: int, width: int, unit: int, most: int) -> tuple[int, int]:
    """Return the size to which SigLIP 2 resizes an image.

    The same search as ``get_image_size_for_max_num_patches`` of transformers, which takes
    seconds to import.

    Args:
        height: of the image in pixels.
        width: of the image.
        unit: both sides become multiples of it.
        most: squares of ``unit`` that the image may have.
    """
    low, high, precision = 1e-6, 100.0, 1e-5

    def scaled(scale: float, side: int) -> int:
        return max(unit, math.ceil(side * scale / unit) * unit)

    while high - low >= precision:
        scale = (low + high) / 2
        if (scaled(scale, height) / unit) * (scaled(scale, width) / unit) <= most:
            low = scale
        else:
            high = scale
    return scaled(low, height), scaled(low, width)


def decode_image(file: BinaryIO, mode: str = "RGB") -> Any:
    """Return an image of Pillow's, decoded whole.

    Raises:
        DataError: it is no image, or truncated, or a decompression bomb.
    """
    from PIL import Image

    try:
        image = Image.open(file)
        _checked((image.height, image.width))
        return image.convert(mode)
    except DataError:
        raise
    except Exception as error:  # decoders raise whatever they stumble over in a broken file
        raise DataError(f"the image cannot be decoded: {error}") from None


def _checked(size: tuple[int, ...]) -> tuple[int, int]:
    """Return (height, width).

    Raises:
        DataError: no encoder should be given such an image.
    """
    height, width = size
    if min(height, width) < 1:
        raise DataError(f"the image has {height} x {width} pixels")
    if height * width > MAX_PIXELS:
        raise DataError(
            f"the image has {height} x {width} pixels, more than {MAX_PIXELS}; it may be a "
            f"decompression bomb, make it smaller"
        )
    if max(height, width) > _MAX_ASPECT * min(height, width):
        raise DataError(
            f"the image has {height} x {width} pixels; one side may be at most {_MAX_ASPECT} "
            f"times the other, cut it"
        )
    return height, width


def _max_num_patches(folder: Path | None) -> int:
    """Return what a checkpoint's image processor says, without importing transformers."""
    for path in (folder / name for name in PROCESSOR_FILES) if folder else ():
        if path.exists():
            found = json.loads(path.read_text())
            found = found.get("image_processor", found)
            return int(found.get("max_num_patches", _SIGLIP2_PATCHES))
    return _SIGLIP2_PATCHES


def _image_processor_of(folder: Path) -> Any:
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder, backend="pil")


def _channels_last(pixels_CHW: Any) -> Pixels:
    return np.ascontiguousarray(np.moveaxis(np.asarray(pixels_CHW), 0, -1), np.float32)
