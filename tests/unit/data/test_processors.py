"""What encoders are given equals what transformers' own processors give, as often as counted."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from disagg_train.config.models import ClipConfig, SiglipConfig
from disagg_train.data.image_processors import (
    ImageGeometry,
    NaflexImages,
    SquareImages,
    naflex_size,
)
from disagg_train.errors import ConfigError, DataError

_SIZES = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1}
_MODES = ("RGB", "L", "RGBA", "P", "LA", "1", "CMYK")
_SIDES = ((40, 40), (37, 52), (61, 33), (8, 90))


def _photo(height: int, width: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng((height, width))
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def _file(image: Image.Image, kind: str = "TIFF") -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind)
    file.seek(0)
    return file


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    import transformers

    square = {"height": 32, "width": 32}
    return {
        "clip": transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square),
        "siglip": transformers.SiglipImageProcessorPil(size=square),
        "siglip2": transformers.Siglip2ImageProcessorPil(patch_size=4, max_num_patches=30),
    }


def _square(family: str, folder: Path | None = None) -> SquareImages:
    config = ClipConfig if family == "clip" else SiglipConfig
    return SquareImages(config(**_SIZES, image_size=32, patch_size=8), 1, folder)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_square_images_equal_transformers(family: str, theirs: dict[str, Any]) -> None:
    ours = _square(family)
    for image in [_photo(*sides) for sides in _SIDES] + [_photo(37, 52, mode) for mode in _MODES]:
        expected = np.moveaxis(theirs[family](image)["pixel_values"][0], 0, -1)
        found = ours.load(_file(image))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
        assert ours.count((image.height, image.width)).input_tokens == 16


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_checkpoints_own_processor_is_used(
    family: str, theirs: dict[str, Any], tmp_path: Path
) -> None:
    processor = type(theirs[family])(**theirs[family].to_dict() | {"image_mean": [0.1, 0.2, 0.3]})
    processor.save_pretrained(tmp_path)
    image = _photo(37, 52)
    expected = np.moveaxis(processor(image)["pixel_values"][0], 0, -1)
    np.testing.assert_array_equal(_square(family, tmp_path).load(_file(image)), expected)


def test_a_processor_of_another_size_is_refused(theirs: dict[str, Any], tmp_path: Path) -> None:
    theirs["siglip"].save_pretrained(tmp_path)
    model = SiglipConfig(**_SIZES, image_size=48, patch_size=8)
    with pytest.raises(DataError, match=r"makes images of shape \(32, 32, 3\)"):
        SquareImages(model, 1, tmp_path).load(_file(_photo(20, 20)))


def test_images_that_keep_their_shape_equal_transformers(theirs: dict[str, Any]) -> None:
    ours = NaflexImages(4, 1, 30, None)
    for image in [_photo(*sides) for sides in _SIDES] + [_photo(37, 52, mode) for mode in _MODES]:
        expected = theirs["siglip2"](image.convert("RGB"))
        rows, columns = expected["spatial_shapes"][0]
        patches = expected["pixel_values"][0][: rows * columns]
        grid = patches.reshape(rows, columns, 4, 4, 3).swapaxes(1, 2)
        found = ours.load(_file(image))
        np.testing.assert_array_equal(found, grid.reshape(rows * 4, columns * 4, 3))
        assert ours.count((image.height, image.width)).input_tokens == rows * columns


@settings(max_examples=300)
@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from((14, 16)), st.integers(1, 1024))
def test_sizes_that_keep_their_shape_equal_transformers(
    height: int, width: int, patch: int, most: int
) -> None:
    from transformers.models.siglip2.image_processing_pil_siglip2 import (
        get_image_size_for_max_num_patches,
    )

    expected = get_image_size_for_max_num_patches(height, width, patch, most)
    assert naflex_size(height, width, patch, most) == expected


@settings(max_examples=25)
@given(st.integers(1, 120), st.integers(1, 120), st.sampled_from((1, 4, 9)), st.integers(9, 60))
def test_what_is_counted_is_what_is_loaded(height: int, width: int, merge: int, most: int) -> None:
    ours = NaflexImages(4, merge, most, None)
    count = ours.count((height, width))
    image = ours.load(_file(_photo(height, width)))
    rows, columns = image.shape[0] // 4, image.shape[1] // 4
    assert rows * columns == count.input_tokens == count.tokens * merge <= most
    assert rows**2 % merge == columns**2 % merge == 0


def test_the_checkpoint_says_how_many_patches_an_image_has(
    theirs: dict[str, Any], tmp_path: Path
) -> None:
    theirs["siglip2"].save_pretrained(tmp_path)
    size = (400, 300)
    assert NaflexImages(4, 1, None, tmp_path).count(size) == NaflexImages(4, 1, 30, None).count(
        size
    )
    assert NaflexImages(4, 1, None, None).count(size).input_tokens > 200


def test_an_image_with_fewer_patches_than_a_token_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"projector\.merge=9, but an image has at most 4"):
        NaflexImages(4, 9, 4, None)


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from((1, 2, 3, 4)),
    st.sampled_from((1, 3)),
    st.integers(4, 9),
)
def test_a_vits_images_are_resized_as_counted(
    height: int, width: int, merge: int, channels: int, most: int
) -> None:
    ours = ImageGeometry(5, merge, most, channels)
    count = ours.count((height, width))
    image = ours.load(_file(_photo(height, width)))
    assert image.shape[2] == channels
    assert ours.num_patches(*image.shape[:2]) == count.input_tokens
    assert ours.num_tokens(*image.shape[:2]) == count.tokens
    assert max(image.shape[:2]) <= most * 5
    assert 0.0 <= image.min() <= image.max() <= 1.0


def test_an_image_of_a_fitting_size_reaches_a_vit_as_it_is() -> None:
    image = _photo(10, 15)
    found = ImageGeometry(5, 2, num_channels=3).load(_file(image))
    np.testing.assert_allclose(found, np.asarray(image) / 255.0, rtol=1e-6)


def _truncated() -> io.BytesIO:
    whole = _file(_photo(60, 60), "JPEG").getvalue()
    return io.BytesIO(whole[: len(whole) // 2])


def _bomb() -> io.BytesIO:
    """Return a PNG whose header promises 800 million pixels."""
    content = bytearray(_file(Image.new("1", (1, 1)), "PNG").getvalue())
    content[16:24] = struct.pack(">II", 40_000, 20_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return io.BytesIO(bytes(content))


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (_truncated, "cannot be decoded: image file is truncated"),
        (lambda: io.BytesIO(b""), "cannot be decoded: cannot identify"),
        (lambda: io.BytesIO(b"no image at all"), "cannot be decoded: cannot identify"),
        (_bomb, "decompression bomb"),
        (lambda: _file(_photo(1, 201)), "at most 200 times the other"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_images_are_refused_with_the_reason(file: Any, reason: str) -> None:
    for processor in (_square("clip"), NaflexImages(4, 1, 30, None), ImageGeometry(4, 1)):
        with pytest.raises(DataError, match=reason):
            processor.load(file())


@pytest.mark.parametrize("size", [(0, 4), (20_000, 20_000), (3, 1000)])
def test_bad_sizes_are_refused_before_anything_is_decoded(size: tuple[int, int]) -> None:
    for processor in (_square("clip"), NaflexImages(4, 1, 30, None), ImageGeometry(4, 1)):
        with pytest.raises(DataError, match=f"{size[0]} x {size[1]} pixels"):
            processor.count(size)
