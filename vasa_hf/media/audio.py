"""Sound of any kind as float32 `[channels, samples]`, and back to a WAV file."""

from __future__ import annotations

import logging
import os
import struct
import subprocess
import tempfile
import wave
from typing import Any

import numpy as np
import torch

from .ffmpeg import READ_OPTIONS, ffmpeg_path, input_url, shortened, staging

logger = logging.getLogger(__name__)

MAX_CHANNELS = 32


def load_audio(
    audio: Any,
    sampling_rate: int | None = None,
) -> tuple[np.ndarray, int]:
    """Load sound without resampling or mixing.

    Args:
        audio (`str`, `os.PathLike`, `tuple`, `np.ndarray`, `torch.Tensor` or `list`):
            A file of any container and codec that ffmpeg reads (a video's first sound track too); a pair
            (samples, rate) or, as gradio gives it, (rate, samples); or bare samples. Samples are `(samples,)`,
            `(channels, samples)` or `(samples, channels)` (the shorter axis is the channels), floats in [-1, 1] or
            integers, which are scaled by their type.
        sampling_rate (`int`, *optional*): Samples a second; needed for bare samples, else must agree.

    Returns:
        `tuple`: `np.ndarray` of shape `(channels, samples)`, float32, and the sampling rate.

    Raises:
        ValueError: If there is no such file, no sound in it, no samples, or no known rate.
    """
    if isinstance(audio, (str, os.PathLike)):
        samples, rate = _decode(audio)
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


def as_channels(audio: Any, argument: str = "audio") -> np.ndarray:
    """Return samples as float32 `(channels, samples)`; see `load_audio` for what they may be."""
    if isinstance(audio, torch.Tensor):
        audio = audio.detach().cpu()
        audio = (audio.float() if audio.is_floating_point() else audio).numpy()
    audio = np.asarray(audio)
    if audio.dtype.kind not in "fiu":
        raise ValueError(f"`{argument}` must hold real numbers, got {audio.dtype}.")
    if audio.ndim not in (1, 2):
        raise ValueError(f"`{argument}` must have 1 or 2 dimensions (samples, channels), got shape {audio.shape}.")
    if audio.size == 0:
        raise ValueError(f"`{argument}` must hold at least one sample, got shape {audio.shape} (zero length).")
    samples = audio[None] if audio.ndim == 1 else audio if audio.shape[0] <= audio.shape[1] else audio.T
    if samples.shape[0] > MAX_CHANNELS:
        raise ValueError(f"`{argument}` must have at most {MAX_CHANNELS} channels, got shape {audio.shape}.")
    if audio.dtype.kind != "f":
        span = 2.0 ** (8 * audio.dtype.itemsize - 1)
        samples = (samples - (span if audio.dtype.kind == "u" else 0.0)) / span
    return np.ascontiguousarray(samples, dtype=np.float32)


def _decode(path: str | os.PathLike) -> tuple[np.ndarray, int]:
    """Decode the first sound track of a file at its own rate; a track that starts late gets silence first."""
    command = [ffmpeg_path(), *READ_OPTIONS, "-v", "error", "-i", input_url(path, "audio"), "-map", "0:a:0"]
    command += ["-af", "aresample=async=1:first_pts=0", "-c:a", "pcm_f32be", "-f", "au", "pipe:1"]
    with tempfile.TemporaryFile() as file:  # AU: the simplest header with rate and channels that needs no seeking
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE)
        if done.returncode != 0:
            if b"matches no streams" in done.stderr:
                raise ValueError(f"`audio` must hold sound, but {os.fspath(path)!r} has no audio stream.")
            reason = shortened(done.stderr)
            raise ValueError(f"`audio` must be a readable sound file, got {os.fspath(path)!r}: {reason}")
        file.seek(0)
        _, offset, _, _, rate, channels = struct.unpack(">4s5I", file.read(24))
        samples = np.fromfile(file, dtype=">f4", offset=offset - 24)
    if samples.size == 0:
        raise ValueError(f"`audio` must not have zero length, but {os.fspath(path)!r} holds no samples.")
    if done.stderr:
        logger.warning("%s is damaged and was read as far as possible: %s", os.fspath(path), shortened(done.stderr))
    return np.ascontiguousarray(samples.reshape(-1, channels).T, dtype=np.float32), rate


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
