"""The checks on a data set's sizes, made before any actor starts."""

from collections.abc import Sequence

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
        for slot in slots:
            if slot.position + slot.count > size.sequence_tokens:
                raise DataError(
                    f"sample {size.key}: placeholders of {encoder!r} at {slot.position}.."
                    f"{slot.position + slot.count} end after its {size.sequence_tokens} tokens"
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
