"""What a data set is to the trainer: sizes known up front, samples loaded by id on a rank."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from disagg_train.config.job import JobConfig
from disagg_train.errors import ConfigError, DataError
from disagg_train.planner.step_plan import SampleSize

Split = Literal["train", "evaluation"]
IGNORE = -1
"""Label of a position without a loss."""


@dataclass(frozen=True)
class ImageGeometry:
    """How many tokens an encoder makes of an image, from its size alone.

    Args:
        patch_size: side of a patch in pixels.
        merge: consecutive patches that the projector joins into one token.
    """

    patch_size: int
    merge: int

    def num_patches(self, height: int, width: int) -> int:
        """Return the patches of an image.

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
        """Return the tokens that reach the LLM."""
        return self.num_patches(height, width) // self.merge


@dataclass(frozen=True)
class Sample:
    """One sample, loaded.

    Args:
        key: its id.
        token_ids_S: the fused sequence, ``[S]``; placeholders hold any valid id.
        labels_S: the token that follows each position, ``IGNORE`` where there is no loss.
        images: per encoder, its images ``[height, width, channels]`` in order of their slots.
        answer_start: position of the first token to be generated in an evaluation.
    """

    key: int
    token_ids_S: NDArray[np.int64]
    labels_S: NDArray[np.int64]
    images: Mapping[str, Sequence[NDArray[np.float32]]] = field(default_factory=dict)
    answer_start: int = 0


class DataSource(Protocol):
    """A data set. Construction and ``sizes`` must be cheap; ``load`` runs on the ranks."""

    def sizes(self, split: Split) -> Sequence[SampleSize]:
        """Return the sizes of all samples of a split; keys are unique over both splits."""

    def load(self, key: int) -> Sample:
        """Return one sample; the same key gives the same sample on every rank."""

    def text(self, token_ids: Sequence[int]) -> str:
        """Return generated tokens as text, up to the end of the answer."""


def open_source(job: JobConfig) -> DataSource:
    """Return the job's data source.

    Raises:
        ConfigError: there is no such source, or it does not take the given options.
    """
    kind = job.data.kind
    path = {"digits": "disagg_train.data.digits:DigitsSource"}.get(kind, kind)
    module_name, colon, class_name = path.partition(":")
    if not colon:
        raise ConfigError(f"data.kind: {kind!r} is neither `digits` nor `package.module:Class`")
    try:
        source_class = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"data.kind: cannot import {kind!r}: {error}") from None
    geometries = {
        name: ImageGeometry(module.model.patch_size, module.projector.merge)
        for name, module in job.encoders.items()
    }
    try:
        source: DataSource = source_class(geometries, seed=job.seed, **job.data.options)
    except TypeError as error:
        raise ConfigError(f"data.options do not fit {kind!r}: {error}") from None
    return source
