"""Drawn samples are what their sizes say."""

import numpy as np

from disagg_train.bench.drawn import Drawn
from disagg_train.bench.spreads import ENCODER, PATCHES_PER_TOKEN, SPREADS
from disagg_train.data.image_processors import ImageGeometry
from disagg_train.data.source import IGNORE

_GEOMETRY = ImageGeometry(patch_size=4, merge=PATCHES_PER_TOKEN, max_patches_per_side=512)


def test_a_sample_has_the_tokens_patches_and_labels_of_its_size() -> None:
    source = Drawn({ENCODER: _GEOMETRY}, samples=50)
    for size in source.sizes("train"):
        sample = source.load(size.key)
        (image,) = sample.inputs[ENCODER]
        assert len(sample.token_ids_S) == size.sequence_tokens
        assert np.count_nonzero(sample.labels_S != IGNORE) == size.target_tokens
        assert (_GEOMETRY.num_patches(*image.shape[:2]),) == size.input_tokens[ENCODER]


def test_smaller_sizes_have_the_same_spread() -> None:
    spread = SPREADS["chart-to-table"]
    lengths = [
        [each.sequence_tokens for each in kind.samples(2000, 0)]
        for kind in (spread, spread.smaller(8))
    ]
    variation = [np.std(each) / np.mean(each) for each in lengths]
    assert np.mean(lengths[0]) / np.mean(lengths[1]) > 7
    assert abs(variation[0] / variation[1] - 1) < 0.05
