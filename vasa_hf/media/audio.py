"""Audio of any kind as float32 `[channels, samples]`, and back to a WAV file."""

from __future__ import annotations

import logging
import os
import struct
import wave
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from vasa_hf.checks import shorten

from .ffmpeg import MAX_SECONDS, READ_OPTIONS, Decoder, check_seconds, input_url, shorten_stderr, staging
from .lengths import find_missing_end

logger = logging.getLogger(__name__)

MAX_CHANNELS = 32
MAX_BYTES = 4 << 30  # of all samples of a file
# The centre, where people speak, is 2.5 dB down in each of two channels: ffmpeg's own 3.01 would do as well.
_FILTERS = "aresample=async=1:first_pts=0:center_mix_level=0.75,aformat=channel_layouts=mono|stereo"
_QUIET_POWER = 1e-6  # -60 dB of full scale


def load_audio(
    audio: Any,
    sampling_rate: int | None = None,
    max_seconds: float = MAX_SECONDS,
) -> tuple[np.ndarray, int]:
    """Load audio without resampling or mixing.

    Args:
        audio (`str`, `os.PathLike`, `tuple`, `np.ndarray`, `torch.Tensor` or `list`):
            A file of any container and codec that ffmpeg reads (a video's first audio track too); a pair
            (samples, rate) or, as gradio gives it, (rate, samples); or bare samples. Samples are `(samples,)`,
            `(channels, samples)` or `(samples, channels)` (the shorter axis is the channels), floats in [-1, 1] or
            integers, which are scaled by their type.
        sampling_rate (`int`, *optional*): Samples a second; needed for bare samples, else must agree.
        max_seconds (`float`, defaults to six hours): Longer files are refused as soon as so much has been read.

    Returns:
        `tuple`: `np.ndarray` of shape `(channels, samples)`, float32, and the sampling rate.

    Raises:
        ValueError: If there is no such file, no audio in it, no samples, too many (4 GiB), or no known rate.
    """
    if isinstance(audio, (str, os.PathLike)):
        blocks, num_bytes = [], 0
        for block in audio_blocks(audio, max_seconds=max_seconds):
            blocks.append(block)
            num_bytes += block[0].nbytes
            if num_bytes > MAX_BYTES:
                raise ValueError(f"`audio` must decode to at most {MAX_BYTES >> 30} GiB, got {os.fspath(audio)!r}.")
        samples, rate = np.concatenate([samples for samples, _ in blocks], axis=1), blocks[0][1]
    elif isinstance(audio, tuple) and len(audio) == 2 and any(isinstance(part, (int, np.integer)) for part in audio):
        samples, rate = audio if isinstance(audio[1], (int, np.integer)) else audio[::-1]
        samples = as_channels(samples)
    elif sampling_rate is None:
        raise ValueError(
            "`sampling_rate` must be given for bare samples (or pass a file, or a pair (samples, rate) with a whole "
            f"rate), got `audio` of type {type(audio).__name__} alone."
        )
    else:
        samples, rate = as_channels(audio), sampling_rate
    if sampling_rate is not None and int(rate) != sampling_rate:
        raise ValueError(f"`sampling_rate` must agree with the rate of `audio`, {rate}, got {sampling_rate}.")
    if int(rate) != rate or not 1000 <= rate <= 768_000:
        raise ValueError(f"`sampling_rate` must be a whole number in [1000, 768000] Hz, got {rate!r}.")
    return samples, int(rate)


def as_array(samples: Any, argument: str = "audio") -> np.ndarray:
    """Samples of any type as an array; raises `ValueError` for what is none."""
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().cpu()
        return (samples.float() if samples.is_floating_point() else samples).numpy()
    try:
        return np.asarray(samples)
    except (TypeError, ValueError, ArithmeticError, RecursionError) as error:  # lists of unequal lengths
        raise ValueError(f"`{argument}` must hold real numbers, got {shorten(samples)}.") from error


def as_channels(audio: Any, argument: str = "audio", channel_axis: int | None = None) -> np.ndarray:
    """Return samples as float32 `(channels, samples)`; see `load_audio` for what they may be.

    Args:
        audio (`np.ndarray`, `torch.Tensor` or `list`): The samples.
        argument (`str`, defaults to `"audio"`): Its name in messages.
        channel_axis (`int`, *optional*): Axis of the channels of two; the shorter one if it is not given.
    """
    audio = as_array(audio, argument)
    if audio.dtype.kind not in "fiu":
        raise ValueError(f"`{argument}` must hold real numbers, got {audio.dtype}.")
    if audio.ndim not in (1, 2):
        raise ValueError(f"`{argument}` must have 1 or 2 dimensions (samples, channels), got shape {audio.shape}.")
    if audio.size == 0:
        raise ValueError(f"`{argument}` must hold at least one sample, got shape {audio.shape} (zero length).")
    if channel_axis is None:
        channel_axis = 0 if audio.ndim == 1 or audio.shape[0] <= audio.shape[1] else 1
    samples = audio[None] if audio.ndim == 1 else audio if channel_axis == 0 else audio.T
    if samples.shape[0] > MAX_CHANNELS:
        raise ValueError(f"`{argument}` must have at most {MAX_CHANNELS} channels, got shape {audio.shape}.")
    if audio.dtype.kind != "f":
        span = 2.0 ** (8 * audio.dtype.itemsize - 1)
        samples = (samples - (span if audio.dtype.kind == "u" else 0.0)) / span
    return np.ascontiguousarray(samples, dtype=np.float32)


class CancellationGuard:
    """Notices stereo of which one channel is inverted, so that a mix of both is silent; the blocks come one by one.

    Args:
        name (`str`, *optional*): What to call the audio in the warning; without it, there is none.
    """

    def __init__(self, name: str | None = None):
        self.name, self.cancels = name, False

    def apply(self, samples: np.ndarray) -> np.ndarray:
        """Return samples `(channels, n)`, with the first channel for both where they cancel each other."""
        if len(samples) != 2:
            return samples
        both = float(np.square(samples[0] + samples[1], dtype=np.float64).sum())
        apart = float(np.square(samples[0] - samples[1], dtype=np.float64).sum())
        if apart > 4 * _QUIET_POWER * samples.shape[1]:  # what is quieter tells nothing
            cancels = both < 0.03 * apart  # 15 dB
            if cancels and not self.cancels and self.name is not None:
                logger.warning("%s: one channel is the other one inverted; the first one is used.", self.name)
                self.name = None
            self.cancels = cancels
        return np.stack([samples[0], samples[0]]) if self.cancels else samples


def mix_to_mono(
    samples: np.ndarray,  # [C, n]
) -> np.ndarray:  # [n]
    """Mean of all channels, of the first one where two cancel each other."""
    return CancellationGuard("`audio`").apply(samples).mean(0)


def audio_blocks(
    path: str | os.PathLike, seconds: float = 1.0, quiet: bool = False, max_seconds: float = MAX_SECONDS
) -> Iterator[tuple[np.ndarray, int]]:
    """Decode the first audio track of a file at its own rate, block by block: memory does not grow with its length.

    A track that starts late gets silence first. More than two channels are mixed to stereo by what each of them is, as
    players do; of two that cancel each other the first is given for both.

    Args:
        path (`str` or `os.PathLike`): Any container and codec that ffmpeg reads.
        seconds (`float`, defaults to 1.0): Length of a block; the last one may be shorter.
        quiet (`bool`, defaults to `False`): Whether to pass over damage in silence, as when reading for a second time.
        max_seconds (`float`, defaults to six hours): Longer audio is refused as soon as so much of it has been read.

    Yields:
        `tuple`: `np.ndarray` of shape `(channels, samples)`, one or two channels, float32, and the sampling rate.

    Raises:
        ValueError: If there is no such file, no audio in it, too much, or (after the last block) it could not be read
            whole.
    """
    options = [*READ_OPTIONS, "-v", "error", "-i", input_url(path, "audio"), "-map", "0:a:0"]
    options += ["-af", _FILTERS, "-c:a", "pcm_f32be", "-f", "au", "pipe:1"]
    count, guard = 0, CancellationGuard(None if quiet else os.fspath(path))
    with Decoder(options) as decoder:
        header = decoder.read(24)  # AU: the simplest header with rate and channels that needs no seeking
        if len(header) == 24:
            _, offset, _, _, rate, channels = struct.unpack(">4s5I", header)
            decoder.read(offset - 24)
            while data := decoder.read(max(round(seconds * rate), 1) * channels * 4):
                samples = np.frombuffer(data, ">f4", len(data) // 4 // channels * channels).reshape(-1, channels)
                count += len(samples)
                check_seconds(count / rate, max_seconds, "audio")
                yield guard.apply(np.ascontiguousarray(samples.T, dtype=np.float32)), rate
        status, stderr = decoder.finish()
    if decoder.is_stuck:
        raise ValueError(f"`audio` must be a readable audio file, but {os.fspath(path)!r} gives nothing any more.")
    if status != 0:
        if b"matches no streams" in stderr:
            raise ValueError(f"`audio` must hold audio, but {os.fspath(path)!r} has no audio stream.")
        raise ValueError(f"`audio` must be a readable audio file, got {os.fspath(path)!r}: {shorten_stderr(stderr)}")
    if count == 0:
        raise ValueError(f"`audio` must not have zero length, but {os.fspath(path)!r} holds no samples.")
    if quiet:
        return
    if stderr:
        logger.warning("%s is damaged and was read as far as possible: %s", os.fspath(path), shorten_stderr(stderr))
    elif (missing := find_missing_end(path, count / rate)) is not None:
        logger.warning("%s is cut off and was read as far as possible: %s.", os.fspath(path), missing)


def save_wav(path: str | os.PathLike, audio: Any, sampling_rate: int) -> None:
    """Write a 16-bit WAV file, whole or not at all.

    Args:
        path (`str` or `os.PathLike`): The file to write.
        audio (`np.ndarray` or `torch.Tensor`): Samples as in `load_audio`; beyond [-1, 1] they are clipped.
        sampling_rate (`int`): Samples a second.
    """
    samples, sampling_rate = load_audio((audio, sampling_rate))
    if not np.isfinite(samples).all():
        raise ValueError("`audio` must be finite, got NaN or infinity.")
    with staging(path) as folder, wave.open(str(folder / os.path.basename(path)), "wb") as file:
        file.setnchannels(samples.shape[0])
        file.setsampwidth(2)
        file.setframerate(sampling_rate)
        file.writeframes(np.rint(samples.T.clip(-1.0, 1.0) * 32767).astype("<i2").tobytes())
