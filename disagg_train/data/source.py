"""What a data set is to the trainer: sizes known up front, samples loaded by id on a rank."""

import importlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from disagg_train.config.job import JobConfig
from disagg_train.config.modules import (
    ClipModule,
    CustomModule,
    EncoderModule,
    Siglip2Module,
    SiglipModule,
    VitModule,
    WhisperModule,
)
from disagg_train.config.pretrained import checkpoint_folder
from disagg_train.data.audio_processors import WhisperFrames
from disagg_train.data.image_processors import (
    PROCESSOR_FILES,
    ImageGeometry,
    NaflexImages,
    SquareImages,
)
from disagg_train.data.own_encoders import OwnProcessor
from disagg_train.data.processors import Processor
from disagg_train.errors import ConfigError
from disagg_train.planner.step_plan import SampleSize

Split = Literal["train", "evaluation"]
IGNORE = -1
"""Label of a position without a loss."""
_KINDS = {
    "digits": "disagg_train.data.digits:DigitsSource",
    "chat": "disagg_train.data.chat.source:ChatSource",
}


@dataclass(frozen=True)
class Sample:
    """One sample, loaded.

    Args:
        key: its id.
        token_ids_S: the fused sequence, ``[S]``; placeholders hold any valid id.
        labels_S: the token that follows each position, ``IGNORE`` where there is no loss.
        inputs: per encoder, its inputs in order of their slots: images ``[height, width,
            channels]`` or frames ``[frames, values]``, prepared as the encoder takes them.
        answer_start: position of the first token to be generated in an evaluation.
    """

    key: int
    token_ids_S: NDArray[np.int64]
    labels_S: NDArray[np.int64]
    inputs: Mapping[str, Sequence[NDArray[np.float32]]] = field(default_factory=dict)
    answer_start: int = 0


class DataSource(Protocol):
    """A data set. Construction and ``sizes`` must be cheap; ``load`` runs on the ranks.

    It is made with the processors of all encoders by name, the keyword ``seed``, and
    ``data.options``. ``load`` is called on several threads at once.
    """

    def sizes(self, split: Split) -> Sequence[SampleSize]:
        """Return the sizes of all samples of a split; keys are unique over both splits."""

    def load(self, key: int) -> Sample:
        """Return one sample; the same key gives the same sample on every rank.

        Raises:
            DataError: it cannot be used.
        """

    def text(self, token_ids: Sequence[int]) -> str:
        """Return generated tokens as text, up to the end of the answer."""


def load_part(source: DataSource, key: int, encoders: Collection[str]) -> Sample:
    """Return a sample with the inputs of some encoders, and no others if that saves work.

    A source may have a method ``load_part(key, encoders)``; others load the whole sample.

    Raises:
        DataError: it cannot be used.
    """
    load: Callable[[int, Collection[str]], Sample] | None = getattr(source, "load_part", None)
    return source.load(key) if load is None else load(key, encoders)


def open_source(job: JobConfig) -> DataSource:
    """Return the job's data source.

    Raises:
        ConfigError: there is no such source, or it does not take the given options.
    """
    kind, options = job.data.kind, dict(job.data.options)
    if kind == "chat":
        options["on_bad_sample"] = job.data.on_bad_sample
        options.setdefault("tokenizer", job.language.pretrained)
    path = _KINDS.get(kind, kind)
    module_name, colon, class_name = path.partition(":")
    if not colon:
        raise ConfigError(
            f"data.kind: {kind!r} is neither one of {sorted(_KINDS)} nor `package.module:Class`"
        )
    try:
        source_class = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"data.kind: cannot import {kind!r}: {error}") from None
    processors = make_processors(job)
    try:
        source: DataSource = source_class(processors, seed=job.seed, **options)
    except TypeError as error:
        raise ConfigError(f"data.options do not fit {kind!r}: {error}") from None
    return source


def make_processors(job: JobConfig) -> dict[str, Processor]:
    """Return what prepares the inputs of each encoder of a job.

    Raises:
        ConfigError: an encoder's sizes and its processor do not fit.
    """
    return {
        name: OwnProcessor(name, module) if isinstance(module, CustomModule) else _processor(module)
        for name, module in job.encoders.items()
    }


def _processor(module: EncoderModule) -> Processor:
    merge, folder = module.projector.merge, _processor_folder(module)
    match module:
        case VitModule(model=vit):
            return ImageGeometry(vit.patch_size, merge, vit.max_patches_per_side, vit.num_channels)
        case ClipModule(model=square) | SiglipModule(model=square):
            return SquareImages(square, merge, folder)
        case Siglip2Module(model=naflex):
            return NaflexImages(naflex.patch_size, merge, module.max_num_patches, folder)
        case WhisperModule(model=whisper):
            return WhisperFrames(whisper, merge, folder)
    raise ConfigError(f"no processor is known for a {type(module).__name__}")


def _processor_folder(module: EncoderModule) -> Path | None:
    """Return the folder of the module's checkpoint, if that says how inputs are prepared."""
    if module.pretrained is None:
        return None
    folder = checkpoint_folder(module.pretrained, PROCESSOR_FILES)
    return folder if any((folder / name).exists() for name in PROCESSOR_FILES) else None
