"""Inputs become tokens in the order that their encoder and its projector expect."""

import numpy as np
import pytest
from numpy.typing import NDArray

from disagg_train.config.models import ClipConfig, SiglipConfig, VitConfig, WhisperConfig
from disagg_train.config.modules import (
    ClipModule,
    ProjectorConfig,
    Siglip2Module,
    SiglipModule,
    TransformerModule,
    VitModule,
    WhisperModule,
)
from disagg_train.data.tokens import (
    InputTokens,
    cutter_of,
    frame_windows,
    patches_by_columns,
    patches_by_squares,
    with_class_token,
)
from disagg_train.errors import DataError

SIZES = {"num_layers": 1, "hidden_size": 4, "num_attention_heads": 1}


def image(height: int, width: int, channels: int = 1) -> NDArray[np.float32]:
    pixels = np.arange(height * width * channels, dtype=np.float32)
    return pixels.reshape(height, width, channels)


def places(tokens: InputTokens) -> list[tuple[int, int]]:
    return list(zip(tokens.rows_T.tolist(), tokens.columns_T.tolist(), strict=True))


def test_columns_come_one_after_the_other() -> None:
    tokens = patches_by_columns(image(4, 6), side=2)
    assert places(tokens) == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    assert tokens.values_TX[1].tolist() == [12, 13, 18, 19]
    assert tokens.values_TX[2].tolist() == [2, 3, 8, 9]
    assert tokens.grid == (2, 3)


def test_rows_come_one_after_the_other() -> None:
    tokens = patches_by_squares(image(4, 6), side=2)
    assert places(tokens) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert tokens.values_TX[1].tolist() == [2, 3, 8, 9]
    assert tokens.values_TX[3].tolist() == [12, 13, 18, 19]


def test_a_squares_patches_come_one_after_the_other() -> None:
    tokens = patches_by_squares(image(4, 4), side=1, square=2)
    first, second, third, fourth = (places(tokens)[at : at + 4] for at in (0, 4, 8, 12))
    assert first == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert second == [(0, 2), (0, 3), (1, 2), (1, 3)]
    assert third == [(2, 0), (2, 1), (3, 0), (3, 1)]
    assert fourth == [(2, 2), (2, 3), (3, 2), (3, 3)]
    assert tokens.values_TX[:, 0].tolist() == [4 * row + column for row, column in places(tokens)]


def test_a_patch_is_rows_of_pixels_of_channels() -> None:
    (values_X,) = patches_by_squares(image(2, 2, channels=3), side=2).values_TX
    assert values_X.tolist() == list(range(12))


def test_pixels_behind_the_last_whole_patch_are_left_out() -> None:
    tokens = patches_by_squares(image(3, 5), side=2)
    assert tokens.grid == (1, 2)
    assert tokens.values_TX.tolist() == [[0, 1, 5, 6], [2, 3, 7, 8]]


def test_patches_that_fill_no_whole_squares_are_refused() -> None:
    with pytest.raises(DataError, match="3 x 4 patches has no whole squares of 2 x 2"):
        patches_by_squares(image(3, 4), side=1, square=2)


def test_a_class_token_comes_last_and_has_no_place() -> None:
    tokens = with_class_token(patches_by_squares(image(2, 2), side=1))
    assert places(tokens) == [(0, 0), (0, 1), (1, 0), (1, 1), (-1, -1)]
    assert tokens.values_TX[:, 0].tolist() == [0, 1, 2, 3, 0]


def test_a_window_is_five_frames_around_every_second_one() -> None:
    frames = np.arange(1, 13, dtype=np.float32).reshape(6, 2)
    tokens = frame_windows(frames)
    padded = [[0, 0], [0, 0], *frames.tolist(), [0, 0], [0, 0]]
    expected = [sum(padded[2 * t : 2 * t + 5], []) for t in range(3)]  # frame f is padded[f + 2]
    assert tokens.values_TX.tolist() == expected
    assert tokens.rows_T.tolist() == [0, 1, 2]


def test_an_odd_number_of_frames_is_refused() -> None:
    with pytest.raises(DataError, match="has 3 frames"):
        frame_windows(np.zeros((3, 2), np.float32))


@pytest.mark.parametrize(
    ("module", "given", "first"),
    [
        (
            VitModule(kind="vit", group="g", model=VitConfig(**SIZES, patch_size=2)),
            image(4, 4),
            [(0, 0), (1, 0), (0, 1), (1, 1)],
        ),
        (
            ClipModule(
                kind="clip", group="g", model=ClipConfig(**SIZES, patch_size=2, image_size=4)
            ),
            image(4, 4, 3),
            [(0, 0), (0, 1), (1, 0), (1, 1), (-1, -1)],
        ),
        (
            SiglipModule(
                kind="siglip", group="g", model=SiglipConfig(**SIZES, patch_size=2, image_size=5)
            ),
            image(5, 5, 3),
            [(0, 0), (0, 1), (1, 0), (1, 1)],
        ),
        (
            Siglip2Module.model_validate(
                {
                    "kind": "siglip2",
                    "group": "g",
                    "model": SIZES | {"patch_size": 1},
                    "projector": ProjectorConfig(merge=4),
                }
            ),
            image(2, 4, 3),
            [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)],
        ),
        (
            WhisperModule(
                kind="whisper",
                group="g",
                model=WhisperConfig(**SIZES, num_mel_bins=2, max_tokens=2),
            ),
            np.zeros((4, 2), np.float32),
            [(0, 0), (1, 0)],
        ),
    ],
    ids=["vit", "clip", "siglip", "siglip2", "whisper"],
)
def test_every_family_has_its_order(
    module: TransformerModule, given: NDArray[np.float32], first: list[tuple[int, int]]
) -> None:
    tokens = cutter_of(module)(given)
    assert places(tokens) == first
    assert tokens.values_TX.shape[1] == module.model.values_per_token


def test_an_image_of_another_size_than_the_towers_is_refused() -> None:
    model = SiglipConfig(**SIZES, patch_size=2, image_size=4)
    module = SiglipModule(kind="siglip", group="g", model=model)
    with pytest.raises(DataError, match="4 x 6 pixels reached an encoder of images of 4 x 4"):
        cutter_of(module)(image(4, 6, 3))
