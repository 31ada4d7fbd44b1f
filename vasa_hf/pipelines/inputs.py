"""Inputs of a pipeline: checked before any heavy work, and read. Each error names the argument."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vasa_hf.checks import check_number, check_path, naming, shorten
from vasa_hf.files import VIDEO_SUFFIXES
from vasa_hf.media.audio import CancellationGuard, as_array, as_channels, audio_blocks, load_audio
from vasa_hf.media.ffmpeg import parse_fps
from vasa_hf.media.video import VideoReader
from vasa_hf.motion import MotionSpec, load_motion
from vasa_hf.processors.audio import MAX_RATE, MIN_RATE, MIN_SECONDS, AudioCheck, StreamingResampler, VasaAudioProcessor

ImageInput = str | os.PathLike | Image.Image | np.ndarray | Tensor
AudioInput = str | os.PathLike | np.ndarray | Tensor | tuple


class Subject(ABC):
    """A prepared subject: its own pose and output size."""

    @property
    @abstractmethod
    def motion(self) -> Tensor:
        """Its own pose and dynamics, `(1, channels)`, float32: generated motion starts from there."""

    @property
    @abstractmethod
    def output_size(self) -> int:
        """Side of the square frames in pixels."""


@dataclass
class PreparedMotion:
    """A motion with all that is needed to render it.

    Attributes:
        subject (`Subject`): A prepared subject.
        motion (`torch.Tensor` of shape `(1, frames, channels)`): Absolute motion of the subject.
        motion_fps (`Fraction`): Its frames per second.
        view (`Any`): A `view_type`.
        fps (`Fraction`): Frames per second of the video.
        audio (`Iterable`): Mono blocks of the video's audio, each with its rate.
    """

    subject: Subject
    motion: Tensor
    motion_fps: Fraction
    view: Any
    fps: Fraction
    audio: Iterable[tuple[np.ndarray, int]] = ()


class AudioSource:
    """A whole audio that has been read and checked. Iterating reads it again, in blocks.

    A file is decoded again each time, so that memory does not grow with its length.

    Args:
        audio (`str`, `os.PathLike`, `np.ndarray`, `torch.Tensor` or `tuple`): See `load_audio`.
        sampling_rate (`int`, *optional*): Rate of bare samples in Hz; must agree with that of others.

    Attributes:
        sampling_rate (`int`): Its rate in Hz.
        num_samples (`int`): Samples of each channel.

    Raises:
        ValueError: If it cannot be read or used, see `AudioCheck`.
    """

    def __init__(self, audio: AudioInput, sampling_rate: int | None = None):
        check_audios([audio])
        if sampling_rate is not None:
            check_number("sampling_rate", sampling_rate, MIN_RATE, MAX_RATE, whole=True)
        self._audio: str | os.PathLike | tuple[np.ndarray, int]
        if isinstance(audio, str | os.PathLike):
            self._audio = audio
        else:
            samples, rate = load_audio(audio, sampling_rate)
            self._audio = CancellationGuard("`audio`").apply(samples), rate
        check: AudioCheck | None = None
        for samples, rate in self._blocks(quiet=False):
            if sampling_rate not in (None, rate):
                raise ValueError(f"`sampling_rate` must agree with the rate of `audio`, {rate}, got {sampling_rate}.")
            check = AudioCheck(rate) if check is None else check
            check.add(samples)
        if check is None:
            raise ValueError("`audio` must hold at least one sample, got none.")
        check.finish()
        self.sampling_rate, self.num_samples = check.sampling_rate, check.num_samples

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield blocks `(channels, n)`, float32; where two channels cancel each other, both are the first."""
        return (samples for samples, _ in self._blocks(quiet=True))

    def mono_blocks(self) -> Iterator[tuple[np.ndarray, int]]:
        """Yield blocks `(n,)`, the mean of the channels, with the rate."""
        return ((samples.mean(0), self.sampling_rate) for samples in self)

    def _blocks(self, quiet: bool) -> Iterator[tuple[np.ndarray, int]]:
        if isinstance(self._audio, str | os.PathLike):
            yield from audio_blocks(self._audio, quiet=quiet)
        else:
            samples, rate = self._audio
            for start in range(0, samples.shape[1], rate):
                yield samples[:, start : start + rate], rate


def choose_rate(audio: AudioInput, sampling_rate: int | None, default: int) -> int | None:
    """Rate to read an audio with: samples without a rate of their own have `default` unless another is given."""
    bare = not isinstance(audio, str | os.PathLike | tuple)
    return default if bare and sampling_rate is None else sampling_rate


def join_blocks(blocks: Iterable[tuple[np.ndarray, int]]) -> tuple[np.ndarray | None, int | None]:
    """Join blocks of mono audio with their rate: samples `(samples,)` and the rate; `None` twice for no blocks."""
    blocks = list(blocks)
    return (np.concatenate([samples for samples, _ in blocks]), blocks[0][1]) if blocks else (None, None)


def join_audio(audios: Sequence[Tensor], samples_per_frame: int) -> tuple[Tensor, list[int]]:
    """Pad audios `(1, n)` with zeros to one batch; also the number of motion frames of each."""
    longest = max(audio.shape[1] for audio in audios)
    batch = torch.cat([torch.nn.functional.pad(audio, (0, longest - audio.shape[1])) for audio in audios])
    return batch, [-(-audio.shape[1] // samples_per_frame) for audio in audios]


def list_images(image: Any) -> tuple[list, bool]:
    """Return the images of an argument as a list, and whether it was a batch (a sequence, or a 4D array)."""
    batch = isinstance(image, list | tuple) or (isinstance(image, np.ndarray | Tensor) and image.ndim == 4)
    return (list(image), True) if batch else ([image], False)


def list_audios(audio: Any) -> tuple[list, bool]:
    """Return the audios of an argument as a list, and whether it was a batch.

    A pair (samples, rate) and a list of numbers are one audio.
    """
    one = not isinstance(audio, list | tuple) or _is_pair(audio)
    if isinstance(audio, list) and audio and all(isinstance(sample, int | float) for sample in audio):
        one = True
    return ([audio], False) if one else (list(audio), True)


def is_whole_audio(audio: Any) -> bool:
    """Whether this is one audio, rather than an iterable of its chunks."""
    return isinstance(audio, str | os.PathLike | np.ndarray | Tensor | AudioSource) or _is_pair(audio)


def _is_pair(audio: Any) -> bool:
    numbers = [isinstance(part, int | float | np.number) for part in audio] if isinstance(audio, tuple) else []
    return len(numbers) == 2 and numbers[0] != numbers[1]


def check_image(image: Any, subject_type: type[Subject], output_size: int | None = None) -> None:
    """Raise `ValueError` unless this is an existing file, an image, an array, or a subject prepared for this size."""
    if isinstance(image, subject_type):
        if output_size not in (None, image.output_size):
            raise ValueError(
                f"`output_size` must be {image.output_size}, as the portrait was prepared for, got {output_size}."
            )
        return
    if not isinstance(image, str | os.PathLike | Image.Image | np.ndarray | Tensor):
        kinds = f"a file, a PIL image, an array, a tensor, or a list of them (or of {subject_type.__name__})"
        raise ValueError(f"`image` must be {kinds}, got {type(image).__name__}.")
    check_file("image", "image", image)


def check_audios(audios: Sequence[Any]) -> None:
    """Raise `ValueError` unless all are existing files, samples, or pairs (samples, rate)."""
    if not audios:
        raise ValueError("`audio` must be at least one audio, got an empty list.")
    for audio in audios:
        if not is_whole_audio(audio) and not isinstance(audio, list):
            kind = type(audio).__name__
            raise ValueError(f"`audio` must be a file, samples, (samples, rate), or a list of them, got {kind}.")
        check_file("audio", "audio or video", audio)


def check_batch(images: Sequence[Any], audios: Sequence[Any], name: str = "image") -> int:
    """Return the number of videos to make of images and audios.

    Args:
        images (`Sequence`): The subjects.
        audios (`Sequence`): The audios.
        name (`str`, defaults to "image"): Name of the argument with the images.

    Raises:
        ValueError: If their numbers differ, and neither is 1.
    """
    batch_size = max(len(images), len(audios))
    if min(len(images), len(audios)) not in (1, batch_size):
        raise ValueError(
            f"`{name}` and `audio` must be equally many, or one of them one: got {len(images)} and {len(audios)}."
        )
    return batch_size


def check_file(name: str, kind: str, value: Any) -> None:
    """Raise `ValueError` if `value` is a path and no file is there."""
    if isinstance(value, str | os.PathLike) and not os.path.isfile(value):
        raise ValueError(f"`{name}` must be an existing {kind} file, got {os.fspath(value)!r}.")


def check_output(path: str | os.PathLike) -> None:
    """Raise `ValueError` unless a video can be written there."""
    check_path("path", path)
    folder, name = os.path.split(os.fspath(path))
    if not name.lower().endswith(VIDEO_SUFFIXES):
        raise ValueError(f"`path` must end in {' or '.join(VIDEO_SUFFIXES)}, got {os.fspath(path)!r}.")
    if not os.path.isdir(folder or "."):
        raise ValueError(f"`path` must lie in an existing folder, got {os.fspath(path)!r}.")
    if os.path.isdir(path) or not os.access(folder or ".", os.W_OK):
        raise ValueError(f"`path` must be a file that can be written, got {os.fspath(path)!r}.")


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise `ValueError` unless `value` is one of `choices`."""
    if not isinstance(value, str | int) or value not in choices:
        raise ValueError(f"`{name}` must be one of {list(choices)}, got {shorten(value)}.")


def check_face(face: Any, box: Any, prefix: str = "") -> None:
    """Raise `ValueError` unless a face is chosen by its number or by its box, if at all.

    Args:
        face (`int`, *optional*): Which of the faces that are found.
        box (`Sequence[float]`, *optional*): Its box, instead of finding it.
        prefix (`str`, defaults to `""`): Start of both names in messages.
    """
    if face is not None:
        check_number(f"{prefix}face", face, 0, 1000, whole=True)
        if box is not None:
            raise ValueError(f"`{prefix}face` must be None where `{prefix}box` is given, got {face}.")


def check_generator(generator: Any, batch_size: int) -> None:
    """Raise `ValueError` unless this is `None`, a generator, or one for each of the batch."""
    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(f"`generator` must be one, or one for each of {batch_size} videos, got {len(generator)}.")
    for one in generator if isinstance(generator, list) else [] if generator is None else [generator]:
        if not isinstance(one, torch.Generator):
            raise ValueError(f"`generator` must be a torch.Generator or a list of them, got {type(one).__name__}.")


def check_components(components: Mapping[str, tuple[Any, type]]) -> None:
    """Raise `ValueError` unless each component, by name, is of its class."""
    for name, (component, wanted) in components.items():
        if not isinstance(component, wanted):
            raise ValueError(f"`{name}` must be a {wanted.__name__}, got {type(component).__name__}.")


def check_fit(component: str, setting: str, got: Any, wanted: Any, other: str) -> None:
    """Raise `ValueError` unless a setting of a component is what another component needs."""
    if got != wanted:
        raise ValueError(f"`{component}` must have `{setting}` {wanted!r} to fit the `{other}`, got {got!r}.")


class DrivingVideo:
    """A driving video: a file, or frames.

    Args:
        video (`str`, `os.PathLike` or a sequence of images): The driving video.
        fps (`Fraction`, `float` or `str`, *optional*): Output rate; the file's own by default, 25 for frames.

    Attributes:
        frames (`Iterable`): Its frames, read one by one.
        fps (`Fraction`): Their rate.
        num_frames (`int` or `None`): Their number, if it is known.

    Raises:
        ValueError: If it is neither.
    """

    def __init__(self, video: Any, fps: Any = None):
        check_file("driving_video", "video", video)
        self.frames: Any
        self._audio_path = None
        if isinstance(video, str | os.PathLike):
            reader = VideoReader(video, fps, argument="driving_video")
            self.frames, self.fps, self.num_frames = reader, reader.fps, reader.num_frames
            self._audio_path = video if reader.has_audio else None
        elif isinstance(video, Sequence | np.ndarray | Tensor) and getattr(video, "ndim", 1) > 0 and len(video):
            self.frames, self.fps, self.num_frames = video, parse_fps(25 if fps is None else fps), len(video)
        else:
            kind = type(video).__name__
            raise ValueError(f"`driving_video` must be a video file or a sequence of frames, got {kind}.")

    def mono_blocks(self) -> Iterator[tuple[np.ndarray, int]]:
        """Yield its audio, mono, block by block with the rate; nothing where it has none."""
        if self._audio_path is not None:
            with naming("driving_video"):
                yield from ((samples.mean(0), rate) for samples, rate in audio_blocks(self._audio_path))


def read_motion(motion: Any, motion_fps: Any, spec: MotionSpec, default_fps: Fraction | int) -> tuple[Tensor, Fraction]:
    """Check a motion, or read it from its file.

    Args:
        motion (`torch.Tensor` of shape `([1,] frames, channels)`, `str` or `os.PathLike`): Absolute motion.
        motion_fps (`Fraction`, `float`, `str` or `None`): Its rate; by default the file's own.
        spec (`MotionSpec`): What the channels must be.
        default_fps (`Fraction` or `int`): Rate of a tensor without `motion_fps`.

    Returns:
        `tuple`: motion `(1, frames, channels)` and its rate.

    Raises:
        ValueError: If it cannot be read, is not finite, or has other channels.
    """
    check_file("motion", "motion", motion)
    if isinstance(motion, str | os.PathLike):
        with naming("motion"):
            motion, saved_spec, saved_fps, _ = load_motion(motion)
        motion_fps = saved_fps if motion_fps is None else motion_fps
        if saved_spec != spec:
            raise ValueError(f"`motion` must have the parts {spec.dynamics}, the file has {saved_spec.dynamics}.")
    if not isinstance(motion, Tensor) or motion.ndim not in (2, 3) or motion.numel() == 0:
        got = tuple(motion.shape) if isinstance(motion, Tensor) else type(motion).__name__
        raise ValueError(f"`motion` must be a file or a tensor of shape ([1,] frames, {spec.dim}), got {got}.")
    spec.check(motion)
    motion = motion if motion.ndim == 3 else motion[None]
    if len(motion) != 1:
        raise ValueError(f"`motion` must be a single one, got {len(motion)}: take `motion[i]`.")
    if not torch.isfinite(motion).all() or (motion[..., spec.slices["scale"]] <= 0).any():
        raise ValueError("`motion` must be finite, and its scales above 0, got others.")
    with naming("motion_fps"):
        return motion, parse_fps(default_fps if motion_fps is None else motion_fps)


def check_finite(motions: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield motions unchanged; raise `ValueError` at NaN or infinity, which a renderer may show as black."""
    for motion in motions:
        if not bool(torch.isfinite(motion).all()):
            raise ValueError("`motion` must be finite, but NaN or infinity was computed: are the weights damaged?")
        yield motion


def read_chunks(
    audio_chunks: Iterable[Any], processor: VasaAudioProcessor, sampling_rate: int | None = None
) -> Iterator[Tensor]:
    """Resample the chunks of one audio to what `processor.load` gives for all of it.

    Args:
        audio_chunks (`Iterable`):
            Samples as for `media.audio.load_audio`, or pairs (samples, rate); of any length. Where they have two axes,
            the first chunk decides which one is that of the channels.
        processor (`VasaAudioProcessor`): Has the output rate.
        sampling_rate (`int`, *optional*, defaults to the processor's): Rate of bare samples in Hz.

    Yields:
        `torch.Tensor` of shape `(1, n)`.

    Raises:
        ValueError: If a chunk cannot be used, or all of them together are too short.
    """
    resampler: StreamingResampler | None = None
    first_rate, received, shape = 0, 0, None
    guard = CancellationGuard("`audio_chunks`")
    for chunk in audio_chunks:
        rate = sampling_rate or processor.sampling_rate
        if _is_pair(chunk):
            chunk, rate = chunk if isinstance(chunk[1], int | float | np.number) else chunk[::-1]
        chunk = as_array(chunk, "audio_chunks")
        if chunk.size == 0 and chunk.ndim:
            continue
        shape = _chunk_shape(chunk, shape)
        samples = as_channels(chunk, "audio_chunks", None if shape is None else shape[0])
        if not np.isfinite(samples).all():
            raise ValueError("`audio_chunks` must be finite, got NaN or infinity.")
        if resampler is None:
            check_number("sampling_rate", rate, MIN_RATE, MAX_RATE)
            if rate != int(rate):
                raise ValueError(f"`sampling_rate` must be a whole number, got {rate!r}.")
            resampler, first_rate = StreamingResampler(int(rate), processor.sampling_rate), rate
        if rate != first_rate:
            raise ValueError(f"`audio_chunks` must keep their sampling rate of {first_rate} Hz, got {rate}.")
        received += samples.shape[1]
        yield torch.from_numpy(resampler.push(guard.apply(samples).clip(-1.0, 1.0).mean(0)).clip(-1.0, 1.0))[None]
    seconds = received / first_rate if received else 0.0
    if resampler is None or seconds < MIN_SECONDS:
        raise ValueError(f"`audio_chunks` must hold at least {MIN_SECONDS} s of audio, got {seconds:.3f} s.")
    yield torch.from_numpy(resampler.flush().clip(-1.0, 1.0))[None]


def _chunk_shape(chunk: Any, known: tuple[int, int] | None) -> tuple[int, int] | None:
    """Axis and number of the channels of chunks with two axes, by the first of them.

    Raises:
        ValueError: If a chunk differs from the first one, or has as many samples as channels.
    """
    shape = tuple(np.shape(chunk))
    if len(shape) != 2 or 0 in shape:
        return known
    if known is None:
        if shape[0] == shape[1] > 1:
            raise ValueError(f"`audio_chunks` must begin with more samples than channels, got {shape}.")
        axis = 0 if shape[0] <= shape[1] else 1
        return axis, shape[axis]
    axis, channels = known
    if shape[axis] != channels:
        expected = f"({channels}, samples)" if axis == 0 else f"(samples, {channels})"
        raise ValueError(f"`audio_chunks` must keep their shape {expected}, got {shape}.")
    return known
