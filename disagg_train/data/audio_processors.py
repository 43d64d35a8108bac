"""Recordings as Whisper's encoder takes them: log-mel frames of one fixed length."""

import threading
from functools import cached_property
from math import gcd
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from disagg_train.config.models import WhisperConfig
from disagg_train.data.processors import Modality, TokenCount
from disagg_train.errors import DataError

SAMPLES_PER_S = 16_000
_SAMPLES_PER_FRAME, _FRAMES_PER_TOKEN = 160, 2
_building = threading.Lock()


class WhisperFrames:
    """Log-mel frames, padded to the longest recording that the encoder takes (30 s).

    Args:
        model: sizes of the encoder.
        merge: consecutive tokens that the projector joins.
        folder: of a checkpoint with a feature extractor; None makes the usual one.
    """

    modality: Modality = "audio"

    def __init__(self, model: WhisperConfig, merge: int, folder: Path | None) -> None:
        self._model, self._folder = model, folder
        self._tokens = TokenCount(model.max_tokens, model.max_tokens // merge)
        self._longest = model.max_tokens * _FRAMES_PER_TOKEN * _SAMPLES_PER_FRAME

    def __repr__(self) -> str:
        return f"WhisperFrames({self._tokens}, {self._longest})"

    def count(self, size: tuple[int, ...]) -> TokenCount:
        """Return the tokens of a recording: as many however long it is.

        Args:
            size: (samples, samples per second).

        Raises:
            DataError: it is empty, or longer than the encoder takes.
        """
        samples, rate = size
        if samples < 1 or rate < 1:
            raise DataError(f"the recording has {samples} samples at {rate} Hz")
        if samples * SAMPLES_PER_S > self._longest * rate:
            raise DataError(
                f"the recording lasts {samples / rate:.2f} s and the encoder takes at most "
                f"{self._longest / SAMPLES_PER_S:g} s; cut it"
            )
        return self._tokens

    def load(self, file: BinaryIO) -> NDArray[np.float32]:
        """Decode wav or flac, mix the channels, resample, and return ``[frames, bins]``."""
        wave, rate = _decode(file)
        self.count((len(wave), rate))
        if rate != SAMPLES_PER_S:
            wave = _resampled(wave, rate)[: self._longest]
        with _building:
            extractor = self._extractor
        frames_BF = extractor(
            wave, sampling_rate=SAMPLES_PER_S, max_length=self._longest, return_tensors="np"
        )["input_features"][0]
        expected = self._model.num_mel_bins, self._model.max_tokens * _FRAMES_PER_TOKEN
        if frames_BF.shape != expected:
            raise DataError(
                f"the feature extractor in {self._folder} makes {frames_BF.shape} values, the "
                f"model takes {expected}; fix model.num_mel_bins or preprocessor_config.json"
            )
        return np.ascontiguousarray(frames_BF.T, np.float32)

    @cached_property
    def _extractor(self) -> Any:
        from transformers import WhisperFeatureExtractor

        extractor: Any = WhisperFeatureExtractor
        if self._folder is not None:
            return extractor.from_pretrained(self._folder)
        return extractor(feature_size=self._model.num_mel_bins)


def _decode(file: BinaryIO) -> tuple[NDArray[np.float32], int]:
    """Return a recording, mixed to one channel, and its samples per second.

    Raises:
        DataError: it cannot be decoded, or ends too early.
    """
    import soundfile

    try:
        with soundfile.SoundFile(file) as recording:
            wave_SC = recording.read(dtype="float32", always_2d=True)
            expected, rate = recording.frames, recording.samplerate
    except Exception as error:  # decoders raise whatever they stumble over in a broken file
        raise DataError(f"the recording cannot be decoded: {error}") from None
    if len(wave_SC) != expected:
        raise DataError(
            f"the recording ends after {len(wave_SC)} of {expected} samples; repair or remove it"
        )
    return wave_SC.mean(axis=1, dtype=np.float32), rate


def _resampled(wave: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    from scipy.signal import resample_poly

    common = gcd(rate, SAMPLES_PER_S)
    resampled: NDArray[np.float32] = resample_poly(wave, SAMPLES_PER_S // common, rate // common)
    return resampled.astype(np.float32)
