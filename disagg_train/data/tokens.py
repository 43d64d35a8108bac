"""One input of an encoder -> the tokens it computes on: values, and where each token sits.

Shapes: T tokens, X values of a token, R x C patches of an image, F frames.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from disagg_train.config.models import ClipConfig, FixedVitConfig, PatchConfig, VitConfig
from disagg_train.config.modules import Siglip2Module, TransformerModule
from disagg_train.errors import DataError

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

CLASS_TOKEN = -1
"""Row and column of a class token."""


@dataclass(frozen=True)
class InputTokens:
    """Tokens of one input, in the order in which the encoder's stream has them.

    Args:
        values_TX: what each is made of; a patch as pixel rows of pixels of channels.
        rows_T: its patch row in the image; of a recording, its number.
        columns_T: its patch column.
        grid: rows and columns of the input.
    """

    values_TX: Floats
    rows_T: Ints
    columns_T: Ints
    grid: tuple[int, int]

    def __len__(self) -> int:
        return len(self.values_TX)


Cutter = Callable[[Floats], InputTokens]
"""An image ``[height, width, channels]``, or frames ``[F, values]`` -> its tokens."""


def cutter_of(module: TransformerModule) -> Cutter:
    """Return how a family's inputs become tokens."""
    model = module.model
    if isinstance(module, Siglip2Module):
        return partial(patches_by_squares, side=module.model.patch_size, square=module.merged_side)
    if isinstance(model, VitConfig):
        return partial(patches_by_columns, side=model.patch_size)
    if isinstance(model, ClipConfig):
        return lambda image: with_class_token(_square_image(image, model))
    if isinstance(model, FixedVitConfig):
        return partial(_square_image, model=model)
    assert not isinstance(model, PatchConfig), f"no order of patches for {module.kind}"
    return frame_windows


def patches_by_columns(image: Floats, side: int) -> InputTokens:
    """Cut an image into patches, column by column: strips then read in writing order."""
    patches_RCX = _patches(image, side)
    rows, columns = patches_RCX.shape[:2]
    at_rows_T, at_columns_T = np.tile(np.arange(rows), columns), np.repeat(np.arange(columns), rows)
    return _taken(patches_RCX, at_rows_T, at_columns_T)


def patches_by_squares(image: Floats, side: int, square: int = 1) -> InputTokens:
    """Cut an image into patches, row by row of squares, and row by row within a square.

    Args:
        image: ``[height, width, channels]``.
        side: of a patch in pixels; pixels behind the last whole patch are left out.
        square: side in patches of the squares whose patches follow each other.

    Raises:
        DataError: the patches do not fill whole squares.
    """
    patches_RCX = _patches(image, side)
    rows, columns = patches_RCX.shape[:2]
    if rows % square or columns % square:
        raise DataError(
            f"an image of {rows} x {columns} patches has no whole squares of {square} x {square}; "
            f"resize it or change the projector's `merge`"
        )
    squares = (rows // square, square, columns // square, square)
    in_order = (each.reshape(squares).swapaxes(1, 2) for each in np.indices((rows, columns)))
    at_rows_T, at_columns_T = (each.flatten() for each in in_order)
    return _taken(patches_RCX, at_rows_T, at_columns_T)


def with_class_token(tokens: InputTokens) -> InputTokens:
    """Add a class token at the end."""
    return InputTokens(
        np.pad(tokens.values_TX, ((0, 1), (0, 0))),
        np.append(tokens.rows_T, CLASS_TOKEN),
        np.append(tokens.columns_T, CLASS_TOKEN),
        tokens.grid,
    )


def frame_windows(frames: Floats) -> InputTokens:
    """Return the five frames that two convolutions see of a recording, for every second frame.

    Token t is made of the frames 2t - 2 to 2t + 2, one after the other; those before the start
    and behind the end are 0.

    Args:
        frames: ``[F, values]``.

    Raises:
        DataError: the number of frames is odd.
    """
    if len(frames) % 2:
        raise DataError(f"a recording has {len(frames)} frames; pad them to an even number")
    padded = np.pad(frames, ((2, 1), (0, 0)))
    windows_TX5 = np.lib.stride_tricks.sliding_window_view(padded, 5, axis=0)[::2]
    count = len(frames) // 2
    values_TX = windows_TX5.swapaxes(1, 2).reshape(count, -1)
    return InputTokens(values_TX, np.arange(count), np.zeros(count, np.int64), (count, 1))


def _square_image(image: Floats, model: FixedVitConfig) -> InputTokens:
    tokens = patches_by_squares(image, model.patch_size)
    if tokens.grid != (model.patches_per_side,) * 2:
        raise DataError(
            f"an image of {image.shape[0]} x {image.shape[1]} pixels reached an encoder of images "
            f"of {model.image_size} x {model.image_size}; resize it"
        )
    return tokens


def _patches(image: Floats, side: int) -> Floats:
    """Return the patches ``[R, C, X]`` of an image."""
    rows, columns = image.shape[0] // side, image.shape[1] // side
    whole = image[: rows * side, : columns * side]
    grid = whole.reshape(rows, side, columns, side, image.shape[2])
    return grid.swapaxes(1, 2).reshape(rows, columns, -1)


def _taken(patches_RCX: Floats, rows_T: Ints, columns_T: Ints) -> InputTokens:
    rows, columns = patches_RCX.shape[:2]
    return InputTokens(patches_RCX[rows_T, columns_T], rows_T, columns_T, (rows, columns))
