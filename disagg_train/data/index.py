"""The checks on a data set's sizes, made before any actor starts."""

from collections.abc import Sequence
from itertools import pairwise

from disagg_train.config.job import JobConfig
from disagg_train.data.source import DataSource, Sample, Split
from disagg_train.errors import DataError
from disagg_train.planner.step_plan import SampleSize


def checked_sizes(source: DataSource, job: JobConfig, split: Split) -> Sequence[SampleSize]:
    """Return the sizes of a split.

    Raises:
        DataError: the split is empty, or a sample's sizes contradict the job.
    """
    sizes = source.sizes(split)
    if not sizes:
        raise DataError(
            f"the data set {job.data.kind!r} has no {split} samples; check data.options"
        )
    for size in sizes:
        _check(size, job)
    return sizes


def _check(size: SampleSize, job: JobConfig) -> None:
    for encoder, slots in size.slots.items():
        if encoder not in job.encoders:
            raise DataError(
                f"sample {size.key} has tokens of {encoder!r}; the job's encoders are "
                f"{sorted(job.encoders)}"
            )
        inputs = len(size.input_tokens.get(encoder, ()))
        if len(slots) != inputs:
            raise DataError(
                f"sample {size.key} has {len(slots)} image placeholders for {encoder!r} but "
                f"{inputs} images; give one image per placeholder"
            )
    _check_places(size)


def _check_places(size: SampleSize) -> None:
    """Placeholders lie inside the sequence, an encoder's in order, and never on each other."""
    for encoder, slots in size.slots.items():
        for before, after in pairwise(slots):
            if after.position < before.position:
                raise DataError(
                    f"sample {size.key}: placeholders of {encoder!r} at {after.position} come "
                    f"after those at {before.position}; list its images in sequence order"
                )
    in_order = sorted((s.position, s.count, e) for e, slots in size.slots.items() for s in slots)
    end, last = 0, "the start"
    for position, count, encoder in in_order:
        if position < end:
            raise DataError(
                f"sample {size.key}: placeholders of {encoder!r} at {position} lie before {end}, "
                f"the end of {last}; give every token a place of its own"
            )
        end, last = position + count, f"those of {encoder!r} at {position}"
    if end > size.sequence_tokens:
        raise DataError(
            f"sample {size.key}: the placeholders {last.removeprefix('those ')} end at {end}, "
            f"after its {size.sequence_tokens} tokens"
        )


def check_sample(sample: Sample, size: SampleSize) -> None:
    """Hold a loaded sample against what its index said.

    Raises:
        DataError: its length, its loss or its images differ.
    """
    if len(sample.token_ids_S) != size.sequence_tokens:
        raise DataError(
            f"sample {sample.key} has {len(sample.token_ids_S)} tokens where its index says "
            f"{size.sequence_tokens}; rebuild the index"
        )
    targets = int((sample.labels_S >= 0).sum())
    if targets != size.target_tokens:
        raise DataError(
            f"sample {sample.key} has {targets} target tokens where its index says "
            f"{size.target_tokens}; rebuild the index"
        )
    for encoder, inputs in size.input_tokens.items():
        images = len(sample.images.get(encoder, ()))
        if images != len(inputs):
            raise DataError(
                f"sample {sample.key} has {images} images for {encoder!r} where its index says "
                f"{len(inputs)}; rebuild the index"
            )
