"""Sizes of images and sounds, from their headers alone."""

import warnings
from typing import BinaryIO

from disagg_train.data.processors import Modality
from disagg_train.errors import DataError


def read_size(file: BinaryIO, modality: Modality, max_image_pixels: int) -> tuple[int, ...]:
    """Return (height, width) in pixels, or (samples, samples per second).

    Raises:
        DataError: the header cannot be read, or declares too many pixels.
    """
    return image_size(file, max_image_pixels) if modality == "image" else sound_size(file)


def image_size(file: BinaryIO, max_pixels: int) -> tuple[int, int]:
    """Return an image's height and width as its file declares them; no pixel is decoded.

    Raises:
        DataError: the header cannot be read, or declares more than ``max_pixels``.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                width, height = image.size
    except Image.DecompressionBombError:
        raise DataError(
            f"a decompression bomb: it declares more than {max_pixels:,} pixels"
        ) from None
    except Exception as error:  # a broken header fails in as many ways as there are formats
        raise DataError(f"its image header cannot be read: {_reason(error)}") from None
    if width * height > max_pixels:
        raise DataError(
            f"a decompression bomb: it declares {width} x {height} pixels, more than "
            f"max_image_pixels={max_pixels:,}"
        )
    return height, width


def sound_size(file: BinaryIO) -> tuple[int, int]:
    """Return a recording's samples per channel, and samples per second.

    Raises:
        DataError: the header cannot be read, or there is no sound.
    """
    import soundfile

    try:
        found = soundfile.info(file)
    except Exception as error:
        raise DataError(f"its sound header cannot be read: {_reason(error)}") from None
    if found.frames <= 0:
        raise DataError("it holds no sound")
    return found.frames, found.samplerate


def _reason(error: Exception) -> str:
    """Return an error's text without the addresses of objects in it."""
    text = str(error).partition(" <")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
