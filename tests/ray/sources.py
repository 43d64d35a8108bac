"""Data sources with something wrong about them, named in jobs by their import paths."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from disagg_train.data.digits import DigitsSource
from disagg_train.data.source import Sample, Split
from disagg_train.errors import DataError
from disagg_train.planner.step_plan import SampleSize, Slot

BAD_KEY = 5


class EmptySource(DigitsSource):
    """Has no samples."""

    def sizes(self, split: Split) -> Sequence[SampleSize]:
        return []


class TooManyPlaceholdersSource(DigitsSource):
    """One sample has two placeholders and one image."""

    def sizes(self, split: Split) -> Sequence[SampleSize]:
        sizes = list(super().sizes(split))
        slots = {"vision": (Slot(0, 1), Slot(1, 1))}
        sizes[BAD_KEY] = SampleSize(BAD_KEY, 9, 2, slots, {"vision": (4,)})
        return sizes


class LyingSource(DigitsSource):
    """One sample is shorter than its index says."""

    def load(self, key: int) -> Sample:
        sample = super().load(key)
        if key != BAD_KEY:
            return sample
        return Sample(key, sample.token_ids_S[:-1], sample.labels_S[:-1], sample.inputs)


class BrokenFileSource(DigitsSource):
    """One sample cannot be read."""

    def load(self, key: int) -> Sample:
        if key == BAD_KEY:
            raise DataError(f"sample {key}: its file ends too early; remove it or repair it")
        return super().load(key)


class NanSource(DigitsSource):
    """One sample's image is not a number."""

    def load(self, key: int) -> Sample:
        sample = super().load(key)
        if key != BAD_KEY:
            return sample
        images = {
            name: [np.full_like(i, np.nan) for i in found] for name, found in sample.inputs.items()
        }
        return Sample(key, sample.token_ids_S, sample.labels_S, images)


class TalkativeSource(DigitsSource):
    """Tells its token wherever it can: with a sample that is bad, and once as a rank fails."""

    def __init__(self, encoders: Any, folder: str, **options: Any) -> None:
        super().__init__(encoders, **options)
        self._failed = Path(folder) / "failed"

    def load(self, key: int) -> Sample:
        token = os.environ["HF_TOKEN"]
        if key == BAD_KEY:
            raise DataError(f"sample {key}: the hub refuses the token {token}")
        if key == BAD_KEY + 1 and not self._failed.exists():
            self._failed.touch()
            raise RuntimeError(f"the hub does not answer {token}")
        return super().load(key)


class SecretiveSource(DigitsSource):
    """Tells a secret that only the rank's environment has."""

    def load(self, key: int) -> Sample:
        if key == BAD_KEY:
            raise RuntimeError(f"no access with {os.environ['DT_TEST_PASSWORD']}")
        return super().load(key)


class DeadlySource(DigitsSource):
    """Loading one sample kills the rank's process, as the system does when memory is short."""

    def load(self, key: int) -> Sample:
        if key == BAD_KEY:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(key)
