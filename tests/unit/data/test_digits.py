"""The demo's data: sizes are known without pixels, and held-out scans are never trained on."""

import numpy as np
import pytest

from disagg_train.data.digits import DigitsSource
from disagg_train.data.image_processors import ImageGeometry
from disagg_train.data.index import check_sample
from disagg_train.data.source import Sample
from disagg_train.errors import DataError

_MERGED = {"vision": ImageGeometry(patch_size=4, merge=4)}


@pytest.fixture(scope="module")
def source() -> DigitsSource:
    return DigitsSource(_MERGED, seed=3, samples=300, evaluation_samples=100)


def test_every_sample_is_what_its_index_says(source: DigitsSource) -> None:
    for split in ("train", "evaluation"):
        for size in source.sizes(split):
            check_sample(source.load(size.key), size)


def test_sizes_differ_and_some_samples_have_no_image(source: DigitsSource) -> None:
    tokens = {size.tokens("vision") for size in source.sizes("train")}
    assert tokens == set(range(13))


def test_labels_are_the_number_that_the_strip_shows(source: DigitsSource) -> None:
    sample = source.load(source.sizes("train")[0].key)
    answer = source.text(sample.labels_S[sample.labels_S >= 0].tolist())
    assert sample.inputs["vision"][0].shape == (8, 8 * len(answer), 1)
    assert answer.isdigit()


def test_a_label_is_the_token_that_follows(source: DigitsSource) -> None:
    sample = source.load(7)
    at = np.flatnonzero(sample.labels_S >= 0)
    assert (sample.labels_S[at] == sample.token_ids_S[at + 1]).all()


def test_training_and_evaluation_use_disjoint_scans(source: DigitsSource) -> None:
    def scans(split: str) -> set[bytes]:
        found = set()
        for size in source.sizes(split):
            for strip in source.load(size.key).inputs.get("vision", ()):
                found |= {digit.tobytes() for digit in np.split(strip, strip.shape[1] // 8, axis=1)}
        return found

    assert not scans("train") & scans("evaluation")


def test_a_held_out_sample_does_not_tell_its_length(source: DigitsSource) -> None:
    rooms = {
        size.sequence_tokens - size.tokens("vision")
        for size in source.sizes("evaluation")
        if size.slots
    }
    assert len(rooms) == 1


def test_the_same_key_gives_the_same_sample() -> None:
    first, second = (DigitsSource(_MERGED, seed=3, text_only=0.0).load(11) for _ in range(2))
    assert (first.token_ids_S == second.token_ids_S).all()
    assert (first.inputs["vision"][0] == second.inputs["vision"][0]).all()


@pytest.mark.parametrize(
    ("shape", "message"),
    [((8, 9), "does not divide into patches of 4"), ((4, 4), "do not merge by 4")],
)
def test_an_image_that_does_not_fit_the_encoder_is_refused(
    shape: tuple[int, int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        _MERGED["vision"].num_tokens(*shape)


def test_a_sample_that_lost_its_image_is_refused(source: DigitsSource) -> None:
    size = next(size for size in source.sizes("train") if size.slots)
    sample = source.load(size.key)
    with pytest.raises(DataError, match="has 0 images for 'vision' where its index says 1"):
        check_sample(Sample(sample.key, sample.token_ids_S, sample.labels_S), size)
