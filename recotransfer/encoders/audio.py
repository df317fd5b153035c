"""Audio encoders: statistics of loudness, timbre and pitch, or the hidden states of a pretrained audio model."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recotransfer.arguments import checked_class
from recotransfer.data import Items
from recotransfer.encoders.base import columns_of, is_missing
from recotransfer.encoders.models import folder_revision, model_folder, model_label, quiet_loading
from recotransfer.errors import InputError, require
from recotransfer.settings import Positive, PositiveInt

Float = NDArray[np.float32]
_WINDOW, _STEP = 0.025, 0.010  # seconds, the usual frame length and hop in speech processing
_FLOOR = 1e-8  # added to the power before the log, so that silence is finite
_PITCH = (60.0, 500.0)  # hertz, from deep male to high female voices
_OCTAVE_COST = 0.05  # penalty on the autocorrelation per octave below the highest pitch
_VOICED = 0.45  # lowest autocorrelation of a frame that counts as voiced
_SHORTEST = 0.1  # seconds; a shorter clip has too few frames for statistics


@checked_class
class LogMelAudio:
    """Statistics of a clip's log-mel spectrum, loudness and pitch; needs no weights and no fitting.

    Mel bands follow the resolution of the human ear (Stevens et al., 1937). Features are, per band, the mean, standard
    deviation and standard deviation of the change between frames; of loudness and of pitch (by autocorrelation, as in
    Praat: Boersma, 1993) the mean, standard deviation, range and trend; and the share of voiced frames, the rate of
    voice onsets, and the log of the duration.

    A clip is the path or the bytes of a WAV file, or {"array": samples, "rate": hertz}. Channels are averaged.

    Args:
        column: the column with clips.
        rate: sample rate in hertz to which all clips are resampled.
        bands: number of mel bands.
    """

    modality = "audio"

    def __init__(self, *, column: str = "audio", rate: PositiveInt = 16_000, bands: PositiveInt = 40) -> None:
        self.column = column
        self.rate = rate
        self.bands = bands

    @property
    def name(self) -> str:
        """Settings and version of the features."""
        return f"LogMelAudio/{self.rate}/{self.bands}/1"

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return 3 * self.bands + 11

    def values(self, items: Items) -> list[Any]:
        """The clip of each item, None where it has none."""
        return clips(items, self.column)

    def encode(self, values: Sequence[Any]) -> Float:
        """(len(values), dim) float32, in order; NaN where a clip cannot be read."""
        out = np.full((len(values), self.dim), np.nan, np.float32)
        for row, value in enumerate(values):
            try:
                out[row] = self._statistics(waveform(value, self.rate))
            except Unreadable:
                continue

        return out

    def _statistics(self, wave: Float) -> NDArray[np.float64]:
        """(dim,) features of a clip's samples."""
        width = int(_WINDOW * self.rate)
        frames = np.lib.stride_tricks.sliding_window_view(wave, 2 * width)[:: int(_STEP * self.rate)]
        power = np.abs(np.fft.rfft(frames[:, :width] * np.hanning(width), axis=1)) ** 2 / width
        mel = np.log(power @ mel_bands(self.bands, width, self.rate) + _FLOOR)
        change = np.diff(mel, axis=0) if len(mel) > 1 else mel
        timbre = [mel.mean(axis=0), mel.std(axis=0), change.std(axis=0)]

        loudness = np.log(power.mean(axis=1) + _FLOOR)
        pitch, voiced = _pitch(frames, self.rate)
        log_pitch = np.log(pitch[voiced]) if voiced.sum() > 2 else np.full(3, np.log(_PITCH[0]))
        seconds = len(wave) / self.rate
        onsets = np.maximum(np.diff(voiced.astype(int)), 0).sum() / seconds
        rhythm = [voiced.mean(), onsets, np.log(seconds)]

        return np.concatenate([*timbre, _summary(loudness), _summary(log_pitch), rhythm])

    def explain_failure(self, value: object) -> str:
        """Why a clip could not be encoded, in a sentence."""
        return _failure(value, self.rate)


@checked_class
class PretrainedAudio:
    """Mean hidden state of a pretrained transformers audio model: wav2vec 2.0, HuBERT, WavLM, AST and others.

    Clips are as in `LogMelAudio`. They are encoded one at a time, since padding with silence would change the result.

    Args:
        model: a folder, or a name on the hub.
        column: the column with clips.
        longest: maximum length in seconds, beyond which a clip is truncated.
    """

    modality = "audio"

    def __init__(self, *, model: str | Path, column: str = "audio", longest: Positive = 30.0) -> None:
        self.model = model
        self.column = column
        self.longest = longest

    @cached_property
    def _folder(self) -> Path:
        return model_folder(self.model)

    @cached_property
    def name(self) -> str:
        """Model, revision of its files and the length limit."""
        return f"PretrainedAudio/{model_label(self.model)}@{folder_revision(self._folder)}/{self.longest:g}"

    @cached_property
    def _network(self) -> Any:
        torch = require("torch")
        AutoModel = require("transformers").AutoModel

        with quiet_loading():
            model = AutoModel.from_pretrained(self._folder, dtype=torch.float32).eval()

        return model.to("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def _extractor(self) -> Any:
        AutoFeatureExtractor = require("transformers").AutoFeatureExtractor

        with quiet_loading():
            return AutoFeatureExtractor.from_pretrained(self._folder)

    @cached_property
    def rate(self) -> int:
        """Samples per second that the model was trained on."""
        return int(self._extractor.sampling_rate)

    @cached_property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self._network.config.hidden_size)

    def values(self, items: Items) -> list[Any]:
        """The clip of each item, None where it has none."""
        return clips(items, self.column)

    def encode(self, values: Sequence[Any]) -> Float:
        """(len(values), dim) float32, in order; NaN where a clip cannot be read."""
        torch = require("torch")

        out = np.full((len(values), self.dim), np.nan, np.float32)

        for row, value in enumerate(values):
            try:
                wave = waveform(value, self.rate)[: int(self.longest * self.rate)]
            except Unreadable:
                continue

            inputs = self._extractor(wave, sampling_rate=self.rate, return_tensors="pt")
            with torch.inference_mode():
                states = self._network(**inputs.to(self._network.device)).last_hidden_state

            out[row] = states[0].mean(dim=0).float().cpu().numpy()

        return out

    def explain_failure(self, value: object) -> str:
        """Why a clip could not be encoded, in a sentence."""
        return _failure(value, self.rate)


class Unreadable(InputError):
    """A clip that cannot be read; the message says why."""


def clips(items: Items, column: str) -> list[Any]:
    """The clip of each item: a path, bytes of a WAV file, or samples after their rate; None where it has none."""
    return [_clip(cell) for cell in columns_of(items, [column])[column].tolist()]


def _clip(cell: object) -> Any:
    if isinstance(cell, np.ndarray):
        raise InputError('a clip given as a bare array has no rate; give {"array": samples, "rate": hertz}')

    if isinstance(cell, Mapping):  # Hugging Face data sets hold {"array": ..., "sampling_rate": ...} or {"bytes": ...}
        if cell.get("array") is not None:
            rate = cell.get("rate") or cell.get("sampling_rate")
            if not rate:
                raise InputError('a clip given as an array needs its rate: {"array": samples, "rate": hertz}')

            return _with_rate(np.asarray(cell["array"]), int(rate))

        if not {"array", "bytes", "path"} & set(cell):
            raise InputError(f'a clip given as a mapping needs "array", "bytes" or "path", got {sorted(cell)}')

        cell = cell.get("bytes") or cell.get("path")

    if is_missing(cell):
        return None

    return Path(cell) if isinstance(cell, str) else cell


def _with_rate(samples: NDArray[Any], rate: int) -> Float:
    """The rate followed by the samples as one channel, so that one array, and its hash, contain the whole clip."""
    return np.concatenate([np.array([rate], np.float32), _one_channel(samples)])


def waveform(value: object, rate: int) -> Float:
    """(samples,) float32 within -1..1 at `rate`; raises `Unreadable` with the reason."""
    if isinstance(value, np.ndarray):
        wave, clip_rate = np.asarray(value[1:], np.float32), int(value[0]) if value.size else 0
    else:
        wave, clip_rate = _read(value)

    if clip_rate < 1 or not np.isfinite(wave).all():
        raise Unreadable("the clip has no sample rate, or samples that are not finite")

    if clip_rate != rate:
        from scipy.signal import resample_poly

        common = int(np.gcd(clip_rate, rate))
        wave = resample_poly(wave, rate // common, clip_rate // common).astype(np.float32)

    if len(wave) < _SHORTEST * rate:
        raise Unreadable(f"the clip is {len(wave) / rate:.3f} s long; it must have at least {_SHORTEST} s")

    return wave


def _read(value: object) -> tuple[Float, int]:
    """Samples and rate of a WAV file."""
    from scipy.io import wavfile

    if isinstance(value, (bytes, bytearray, memoryview)):
        source: Any = io.BytesIO(bytes(value))
    elif isinstance(value, os.PathLike):
        source = value
    else:
        raise Unreadable(f"{type(value).__name__} is not a clip; give a path, bytes of a WAV file, or array and rate")

    try:
        with warnings.catch_warnings(action="ignore", category=wavfile.WavFileWarning):  # about unknown chunks
            rate, samples = wavfile.read(source)
    except Exception as cause:  # damaged files raise a dozen unrelated types; the cause is reported
        raise Unreadable(f"the clip cannot be read as a WAV file ({type(cause).__name__}: {cause})") from cause

    return _one_channel(samples), int(rate)


def _one_channel(samples: NDArray[Any]) -> Float:
    """(samples,) float32 within -1..1, the mean of all channels."""
    if samples.ndim not in (1, 2):
        raise InputError(f"a clip's samples have shape {samples.shape}; wanted (samples,) or (samples, channels)")

    dtype = samples.dtype
    wave: Float = samples.astype(np.float32)
    if dtype.kind == "u":  # 8-bit WAV files are unsigned
        wave = wave / np.float32(128) - 1
    elif dtype.kind == "i":
        wave = wave / np.float32(-float(np.iinfo(dtype).min))

    return np.asarray(wave.mean(axis=1) if wave.ndim == 2 else wave, np.float32)


def _failure(value: object, rate: int) -> str:
    """Why a clip could not be encoded, in a sentence."""
    try:
        waveform(value, rate)
    except Unreadable as reason:
        return str(reason)

    return "the clip gave a vector that is not finite"


def mel_bands(bands: int, width: int, rate: int) -> NDArray[np.float64]:
    """(frequencies, bands) triangular filters, evenly spaced on the mel scale, for frames of `width` samples."""
    mel = np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), bands + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    hertz = np.fft.rfftfreq(width, 1 / rate)[:, None]
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    return np.maximum(np.minimum(rising, falling), 0)


def _pitch(frames: Float, rate: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Pitch (n,) of each frame in hertz, and whether it is voiced (n,), from the peak of the autocorrelation.

    As in Praat, the autocorrelation of a frame is divided by that of its window, which would favour short periods.
    """
    width = frames.shape[1]
    window = np.hanning(width)
    size = 1 << (2 * width - 1).bit_length()

    def autocorrelation(x: NDArray[Any]) -> NDArray[np.float64]:
        result: NDArray[np.float64] = np.fft.irfft(np.abs(np.fft.rfft(x, size, axis=-1)) ** 2, axis=-1)
        return result

    of_frames = autocorrelation((frames - frames.mean(axis=1, keepdims=True)) * window)
    of_window = autocorrelation(window)
    shortest, longest = int(rate / _PITCH[1]), int(rate / _PITCH[0])  # periods in samples
    level = np.maximum(of_frames[:, :1], 1e-12)
    normalised = of_frames[:, shortest:longest] / level / (of_window[shortest:longest] / of_window[0])

    # The multiples of a period correlate as well as the period itself, so longer ones are penalised.
    octaves = np.log2(np.arange(shortest, longest) / shortest)
    best = (normalised - _OCTAVE_COST * octaves).argmax(axis=1)
    loud = of_frames[:, 0] > 1e-3 * max(float(of_frames[:, 0].max()), 1e-9)

    return rate / (shortest + best), (normalised[np.arange(len(best)), best] > _VOICED) & loud


def _summary(values: NDArray[np.float64]) -> list[float]:
    """Mean, standard deviation, range (10th to 90th percentile) and linear trend over the clip."""
    low, high = np.percentile(values, [10, 90])
    time = np.linspace(-0.5, 0.5, len(values))
    spread = float((time**2).sum())
    trend = float(time @ (values - values.mean())) / spread if spread else 0.0
    return [float(values.mean()), float(values.std()), float(high - low), trend]
