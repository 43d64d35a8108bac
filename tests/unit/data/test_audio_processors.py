"""Frames of recordings equal those of transformers' feature extractor."""

import io
from typing import Any

import numpy as np
import pytest
import soundfile

from disagg_train.config.models import WhisperConfig
from disagg_train.data.audio_processors import WhisperFrames
from disagg_train.data.processors import TokenCount
from disagg_train.errors import DataError


def _frames(bins: int = 80, max_tokens: int = 100, merge: int = 1) -> WhisperFrames:
    sizes = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1}
    model = WhisperConfig(**sizes, num_mel_bins=bins, max_tokens=max_tokens)
    return WhisperFrames(model, merge, None)


def _tone(seconds: float, rate: int = 16_000, hertz: float = 440.0) -> np.ndarray:
    times = np.arange(int(seconds * rate)) / rate
    return 0.3 * np.sin(2 * np.pi * hertz * times)


def _file(wave: np.ndarray, rate: int = 16_000, kind: str = "WAV") -> io.BytesIO:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=kind)
    file.seek(0)
    return file


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
@pytest.mark.parametrize("bins", [80, 128])
def test_frames_equal_transformers(kind: str, bins: int) -> None:
    from transformers import WhisperFeatureExtractor

    file = _file(_tone(1.3), kind=kind)
    wave, _ = soundfile.read(io.BytesIO(file.getvalue()), dtype="float32")
    extractor = WhisperFeatureExtractor(feature_size=bins, chunk_length=2)
    expected = extractor(wave, sampling_rate=16_000)["input_features"][0].T
    found = _frames(bins).load(file)
    assert found.shape == (200, bins) and found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_other_rates_sound_the_same(rate: int) -> None:
    expected = _frames().load(_file(_tone(1.0)))
    found = _frames().load(_file(_tone(1.0, rate), rate))
    assert np.abs(found - expected)[5:90].max() < 0.35
    assert np.abs(found - expected)[5:90].mean() < 0.02


def test_channels_are_mixed() -> None:
    wave = _tone(0.5)
    stereo = np.stack([wave * 2, wave * 0], axis=1)
    np.testing.assert_allclose(
        _frames().load(_file(stereo)), _frames().load(_file(wave)), atol=5e-3
    )


def test_every_recording_has_as_many_tokens() -> None:
    ours = _frames(max_tokens=1500, merge=4)
    assert ours.count((1, 8000)) == ours.count((480_000, 16_000)) == TokenCount(1500, 375)


def _cut_short() -> io.BytesIO:
    return io.BytesIO(_file(_tone(1.0), kind="FLAC").getvalue()[:9000])


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (lambda: io.BytesIO(b""), "cannot be decoded"),
        (lambda: io.BytesIO(b"no sound"), "cannot be decoded"),
        (_cut_short, "cannot be decoded|ends after"),
        (lambda: _file(_tone(2.01)), r"lasts 2\.01 s and the encoder takes at most 2 s"),
        (lambda: _file(np.zeros(0)), "has 0 samples"),
    ],
)
def test_bad_recordings_are_refused_with_the_reason(file: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        _frames().load(file())
