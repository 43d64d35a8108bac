"""The checks on a data set's sizes, made before any actor starts."""

from collections.abc import Sequence
from itertools import pairwise

from disagg_train.config.job import JobConfig
from disagg_train.data.sizes import SizeTable
from disagg_train.data.source import DataSource, Sample, Split
from disagg_train.errors import DataError
from disagg_train.metrics.records import BadSample
from disagg_train.planner.in_order import TokenBudget, token_budget
from disagg_train.planner.step_plan import SampleSize


def checked_sizes(source: DataSource, job: JobConfig, split: Split) -> Sequence[SampleSize]:
    """Return the sizes of a split, without the samples that the job's policy takes out.

    Raises:
        DataError: the split is empty, or a sample's sizes contradict the job.
    """
    return usable_sizes(source, job, split)[0]


def usable_sizes(
    source: DataSource, job: JobConfig, split: Split
) -> tuple[Sequence[SampleSize], tuple[BadSample, ...]]:
    """Return the sizes of a split, and what ``data.on_bad_sample: skip`` takes out of it.

    Raises:
        DataError: no sample is left, or one contradicts the job and the policy is to fail.
    """
    sizes, bad = source.sizes(split), []
    budget = token_budget(job)
    for size in _suspects(sizes, job, budget):
        try:
            _check(size, job)
            _check_length(size, budget)
        except DataError as error:
            if job.data.on_bad_sample == "fail":
                raise
            bad.append(BadSample(size.key, str(error)))
    if len(bad) == len(sizes):
        reason = f": {bad[0].reason}" if bad else "; check data.options"
        raise DataError(f"the data set {job.data.kind!r} has no {split} samples{reason}")
    if bad:
        taken_out = {each.key for each in bad}
        if isinstance(sizes, SizeTable):
            return sizes.without(taken_out), tuple(bad)
        sizes = [size for size in sizes if size.key not in taken_out]
    return sizes, tuple(bad)


def _suspects(
    sizes: Sequence[SampleSize], job: JobConfig, budget: TokenBudget | None
) -> Sequence[SampleSize]:
    """Return the samples to look at: of a table those that may break a rule, else all."""
    if not isinstance(sizes, SizeTable):
        return sizes
    room = budget.room - budget.cut.chunks if budget is not None else None
    unknown = [n for n, name in enumerate(sizes.encoders) if name not in job.encoders]
    return [sizes[row] for row in sizes.suspects(unknown, room)]


def _check_length(size: SampleSize, budget: TokenBudget | None) -> None:
    if budget is not None and budget.padded(size) > budget.room:
        raise DataError(
            f"sample {size.key} has {size.sequence_tokens} tokens, which do not fit into "
            f"train.tokens_per_microbatch={budget.tokens}; cut it, raise that, or set "
            f"data.on_bad_sample: skip"
        )


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
        images = len(sample.inputs.get(encoder, ()))
        if images != len(inputs):
            raise DataError(
                f"sample {sample.key} has {images} images for {encoder!r} where its index says "
                f"{len(inputs)}; rebuild the index"
            )
