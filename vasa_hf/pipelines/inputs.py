"""Checks of what users give to a pipeline, before any heavy work. Each error names the argument."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vasa_hf.media.audio import as_channels
from vasa_hf.processors.audio import MAX_RATE, MIN_RATE, MIN_SECONDS, StreamingResampler, VasaAudioProcessor

ImageInput = str | os.PathLike | Image.Image | np.ndarray | Tensor
AudioInput = str | os.PathLike | np.ndarray | Tensor | tuple


def image_list(image: Any) -> tuple[list, bool]:
    """Return the images of an argument as a list, and whether it was a batch (a sequence, or an array with one)."""
    batch = isinstance(image, list | tuple) or (isinstance(image, np.ndarray | Tensor) and image.ndim == 4)
    return (list(image), True) if batch else ([image], False)


def audio_list(audio: Any) -> tuple[list, bool]:
    """Return the sounds of an argument as a list, and whether it was a batch.

    A pair (samples, rate) and a list of numbers are one sound.
    """
    one = not isinstance(audio, list | tuple) or _is_pair(audio)
    if isinstance(audio, list) and audio and all(isinstance(sample, int | float) for sample in audio):
        one = True
    return ([audio], False) if one else (list(audio), True)


def is_whole_audio(audio: Any) -> bool:
    """Whether this is one sound, rather than an iterable of its pieces."""
    return isinstance(audio, str | os.PathLike | np.ndarray | Tensor) or _is_pair(audio)


def _is_pair(audio: Any) -> bool:
    return isinstance(audio, tuple) and len(audio) == 2 and (np.ndim(audio[0]) == 0) != (np.ndim(audio[1]) == 0)


def check_images(images: Sequence[Any], ready: type) -> None:
    """Raise `ValueError` unless all are existing files, pictures, arrays, or of the type `ready`."""
    if not images:
        raise ValueError("`image` must be at least one image, got an empty list.")
    for image in images:
        if not isinstance(image, str | os.PathLike | Image.Image | np.ndarray | Tensor | ready):
            kind = type(image).__name__
            raise ValueError(f"`image` must be a file, a PIL image, an array, a tensor, or a list of them, got {kind}.")
        check_file("image", "picture", image)


def check_audios(audios: Sequence[Any]) -> None:
    """Raise `ValueError` unless all are existing files, samples, or pairs (samples, rate)."""
    if not audios:
        raise ValueError("`audio` must be at least one sound, got an empty list.")
    for audio in audios:
        if not is_whole_audio(audio) and not isinstance(audio, list):
            kind = type(audio).__name__
            raise ValueError(f"`audio` must be a file, samples, (samples, rate), or a list of them, got {kind}.")
        check_file("audio", "sound or video", audio)


def check_file(name: str, kind: str, value: Any) -> None:
    """Raise `ValueError` if `value` is a path and no file is there."""
    if isinstance(value, str | os.PathLike) and not os.path.isfile(value):
        raise ValueError(f"`{name}` must be an existing {kind} file, got {os.fspath(value)!r}.")


def check_output(path: str | os.PathLike) -> None:
    """Raise `ValueError` unless a video can be written there."""
    folder, name = os.path.split(os.fspath(path))
    if not name.lower().endswith(".mp4"):
        raise ValueError(f"`path` must end in .mp4, got {os.fspath(path)!r}.")
    if not os.path.isdir(folder or "."):
        raise ValueError(f"`path` must lie in an existing folder, got {os.fspath(path)!r}.")


def check_number(name: str, value: Any, low: float, high: float, whole: bool = False) -> None:
    """Raise `ValueError` unless `value` is a (whole) number in [low, high]."""
    kinds = (int,) if whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"`{name}` must be a {'whole ' * whole}number in [{low}, {high}], got {value!r}.")


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {list(choices)}, got {value!r}.")


def check_generator(generator: Any, batch_size: int) -> None:
    """Raise `ValueError` unless this is nothing, a generator, or one for each of the batch."""
    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(f"`generator` must be one, or one for each of {batch_size} videos, got {len(generator)}.")
    for one in generator if isinstance(generator, list) else [generator]:
        if one is not None and not isinstance(one, torch.Generator):
            raise ValueError(f"`generator` must be a torch.Generator or a list of them, got {type(one).__name__}.")


def listen(
    audio_chunks: Iterable[Any], processor: VasaAudioProcessor, sampling_rate: int | None = None
) -> Iterator[Tensor]:
    """Bring pieces of one sound to what `processor.load` gives for the whole of it.

    Args:
        audio_chunks (`Iterable`): Samples as for `media.audio.load_audio`, or pairs (samples, rate); of any length.
        processor (`VasaAudioProcessor`): Knows the wanted rate.
        sampling_rate (`int`, *optional*, defaults to the processor's): Rate of bare samples in Hz.

    Yields:
        `torch.Tensor` of shape `(1, n)`.

    Raises:
        ValueError: If a piece is unfit or all of them together are too short.
    """
    resampler, first_rate, received = None, None, 0
    for chunk in audio_chunks:
        rate = sampling_rate or processor.sampling_rate
        if isinstance(chunk, tuple):
            chunk, rate = chunk if np.ndim(chunk[1]) == 0 else chunk[::-1]
        if len(chunk) == 0:
            continue
        samples = as_channels(chunk, "audio_chunks")
        if not np.isfinite(samples).all():
            raise ValueError("`audio_chunks` must be finite, got NaN or infinity.")
        if resampler is None:
            check_number("sampling_rate", int(rate), MIN_RATE, MAX_RATE, whole=True)
            resampler, first_rate = StreamingResampler(int(rate), processor.sampling_rate), rate
        if rate != first_rate:
            raise ValueError(f"`audio_chunks` must keep their sampling rate of {first_rate} Hz, got {rate}.")
        received += samples.shape[1]
        yield torch.from_numpy(resampler.push(samples.clip(-1.0, 1.0).mean(0)).clip(-1.0, 1.0))[None]
    seconds = received / first_rate if received else 0.0
    if seconds < MIN_SECONDS:
        raise ValueError(f"`audio_chunks` must hold at least {MIN_SECONDS} s of sound, got {seconds:.3f} s.")
    yield torch.from_numpy(resampler.flush().clip(-1.0, 1.0))[None]
