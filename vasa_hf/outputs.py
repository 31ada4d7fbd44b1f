"""What the pipelines return."""

from __future__ import annotations

import base64
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image

from .checks import check_callable, check_number, check_path
from .files import VIDEO_SUFFIXES, temporary_folder
from .media.content_credentials import ContentCredentials
from .media.ffmpeg import parse_fps
from .media.video import VideoWriter, check_credentials, check_provenance
from .motion import MotionSpec, save_motion


@dataclass
class TalkingFaceOutput(BaseOutput):
    """Output of the talking-face pipelines.

    Args:
        frames (`list` of `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            One video: PIL images, an array `(frames, height, width, 3)` or a tensor `(frames, 3, height, width)`, in
            [0, 1] (uint8: 0 to 255); or a list of such videos.
        audio (`np.ndarray` of shape `(samples,)` or list of them, *optional*): Mono audio of each video, float32.
        sampling_rate (`int`, *optional*): Samples per second of `audio`.
        fps (`Fraction`, defaults to 25): Frames per second.
        motion (`torch.Tensor` of shape `(batch, motion_frames, channels)`, *optional*): Motion that was rendered.
        motion_spec (`MotionSpec`, *optional*): Meaning of the channels of `motion`.
        motion_fps (`Fraction`, defaults to 25): Frames per second of `motion`; the video's `fps` may differ.
        model_name (`str`, *optional*): Written into the file's provenance manifest.
    """

    frames: Any
    audio: Any = None
    sampling_rate: int | None = None
    fps: Fraction = Fraction(25)
    motion: torch.Tensor | None = None
    motion_spec: MotionSpec | None = None
    motion_fps: Fraction = Fraction(25)
    model_name: str | None = None

    @property
    def videos(self) -> list[Any]:
        """The videos as a list, also when there is only one."""
        one = not isinstance(self.frames, (list, tuple)) or (
            len(self.frames) > 0 and isinstance(self.frames[0], Image.Image)
        )
        if one and not isinstance(self.frames, (list, tuple)) and self.frames.ndim == 5:
            return list(self.frames)
        return [self.frames] if one else list(self.frames)

    def __repr__(self) -> str:
        """One line: frames and audio would be thousands."""
        audio = "none" if self.audio is None else f"at {self.sampling_rate} Hz"
        motion = "none" if self.motion is None else tuple(self.motion.shape)
        counts = [len(video) for video in self.videos]
        return f"{type(self).__name__}({counts} frames at {self.fps} per second, audio {audio}, motion {motion})"

    def _repr_html_(self) -> str | None:
        """The videos, for a notebook; `None` without frames."""
        shown = []
        with temporary_folder() as folder:
            for index in range(len(self.videos)):
                try:
                    self.save(folder / "video.mp4", index)
                except ValueError:  # frames that are none, or latents
                    return None
                data = base64.b64encode((folder / "video.mp4").read_bytes()).decode()
                shown.append(f'<video controls loop src="data:video/mp4;base64,{data}"></video>')
        return "".join(shown) or None

    def save(
        self,
        path: str | os.PathLike,
        index: int | None = None,
        provenance: bool | Mapping[str, Any] = True,
        crf: int = 18,
        credentials: ContentCredentials | None = None,
    ) -> None:
        """Write a video (`.mp4`, `.webm`, or `.gif` without audio) or the motion (`.safetensors`).

        Args:
            path (`str` or `os.PathLike`): The file to write; appears whole or not at all.
            index (`int`, *optional*): Which video of a batch; needed for a video if there are several.
            provenance (`bool` or `dict`, defaults to `True`):
                Mark the frames invisibly and tag the file as synthetic; a dict adds entries to the manifest.
            crf (`int`, defaults to 18): Quality of H.264, 0 (lossless) to 51.
            credentials (`ContentCredentials`, *optional*):
                Your certificate and key, to sign a C2PA manifest in the video as well.

        Raises:
            ValueError: If the suffix is unknown, `index` is missing or out of range, or there is no motion.
        """
        check_path("path", path)
        suffix = Path(path).suffix.lower()
        if suffix == ".safetensors":
            if self.motion is None or self.motion_spec is None:
                raise ValueError(f"`path` ends in .safetensors, but this output holds no `motion`: {str(path)!r}.")
            motion = self.motion if index is None else self.motion[_check_index(index, len(self.motion))][None]
            save_motion(path, motion, self.motion_spec, self.motion_fps)
        elif suffix in VIDEO_SUFFIXES:
            self._save_video(path, index, VideoSettings(provenance, crf, credentials))
        else:
            known = " or ".join((*VIDEO_SUFFIXES, ".safetensors"))
            raise ValueError(f"`path` must end in {known}, got {str(path)!r}.")

    def _save_video(self, path: str | os.PathLike, index: int | None, settings: VideoSettings) -> None:
        videos = self.videos
        if index is None and len(videos) != 1:
            raise ValueError(f"`index` must say which of {len(videos)} videos to save, got None.")
        index = _check_index(0 if index is None else index, len(videos))
        audio = []
        if self.audio is not None:
            several = isinstance(self.audio, (list, tuple)) or (len(videos) > 1 and np.ndim(self.audio) > 1)
            audio = [(self.audio[index] if several else self.audio, self.sampling_rate)]
        frames = ([frame] for frame in videos[index])
        write_video(path, frames, len(videos[index]), parse_fps(self.fps), audio, settings, self.model_name)


@dataclass(frozen=True)
class VideoSettings:
    """How a video is written.

    Args:
        provenance (`bool` or `dict`, defaults to `True`): See `TalkingFaceOutput.save`.
        crf (`int`, defaults to 18): Quality of H.264, 0 (lossless) to 51.
        credentials (`ContentCredentials`, *optional*): See `TalkingFaceOutput.save`.
        on_frames (`Callable`, *optional*): `on_frames(frames_written, frames_in_all)` from time to time.

    Raises:
        ValueError: If one cannot be used; the message names it.
    """

    provenance: bool | Mapping[str, Any] = True
    crf: int = 18
    credentials: ContentCredentials | None = None
    on_frames: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        check_number("crf", self.crf, 0, 51, whole=True)
        check_provenance(self.provenance)
        check_credentials(self.credentials, self.provenance)
        check_callable("on_frames", self.on_frames)


def write_video(
    path: str | os.PathLike,
    parts: Iterable[Any],
    num_frames: int,
    fps: Fraction,
    audio: Iterable[tuple[Any, int]],
    settings: VideoSettings,
    model_name: str | None = None,
) -> None:
    """Write a video part by part.

    Args:
        path (`str` or `os.PathLike`): The `.mp4` file; appears whole or not at all.
        parts (`Iterable`): Frames as `to_uint8` takes them, a few at a time.
        num_frames (`int`): Their number, for `on_frames`.
        fps (`Fraction`): Frames per second.
        audio (`Iterable`): Blocks of samples with their rate.
        settings (`VideoSettings`): Quality, provenance and progress.
        model_name (`str`, *optional*): Added to the provenance manifest.

    Raises:
        ValueError: If there are no frames, or they or the audio cannot be used.
    """
    provenance = settings.provenance
    if provenance is not False:
        extra = provenance if isinstance(provenance, Mapping) else {}
        provenance = {**({"model": model_name} if model_name else {}), **extra}
    arrays = (list(to_uint8(part)) for part in parts)
    first = next(arrays, [])
    if not first:
        raise ValueError("`frames` must hold at least one frame, got none.")
    marks = {"provenance": provenance, "credentials": settings.credentials}
    with VideoWriter(path, fps, first[0].shape[1::-1], **marks, crf=settings.crf) as writer:
        for samples, rate in audio:
            writer.write_audio(samples, rate)
        for frames in itertools.chain([first], arrays):
            for frame in frames:
                writer.write(frame)
            if settings.on_frames is not None:
                settings.on_frames(writer.num_frames, num_frames)


def to_images(frames: torch.Tensor, output_type: str) -> Any:
    """Convert frames `(n, 3, height, width)` in [0, 1] to PIL images (`"pil"`) or an array with channels last (`"np"`).

    Raises:
        ValueError: If one is not finite.
    """
    if not bool(torch.isfinite(frames).all()):
        raise ValueError("`frames` must be finite, got NaN or infinity.")
    if output_type == "pt":
        return frames
    if output_type == "np":
        return frames.permute(0, 2, 3, 1).numpy()
    array = (frames * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    return [Image.fromarray(frame) for frame in array]


def join_images(parts: Sequence[Any], output_type: str) -> Any:
    """Join the results of `to_images` for the parts of one video."""
    if output_type == "pt":
        return torch.cat(list(parts))
    return np.concatenate(parts) if output_type == "np" else list(itertools.chain.from_iterable(parts))


def to_uint8(video: Sequence[Image.Image] | np.ndarray | torch.Tensor) -> Iterator[np.ndarray]:
    """Yield the frames of one video as uint8 arrays of shape `(height, width, 3)`."""
    for frame in video:
        if isinstance(frame, torch.Tensor):
            frame = frame.detach().cpu()
            frame = (frame.float() if frame.is_floating_point() else frame).movedim(0, -1).numpy()
        frame = np.asarray(frame.convert("RGB") if isinstance(frame, Image.Image) else frame)
        if frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"`frames` must be RGB images, got one of shape {frame.shape}.")
        if frame.dtype != np.uint8:
            if not np.isfinite(frame).all():
                raise ValueError("`frames` must be finite, got NaN or infinity.")
            frame = np.rint(frame.clip(0, 1) * 255).astype(np.uint8)
        yield frame


def _check_index(index: int, count: int) -> int:
    check_number("index", index, 0, count - 1, whole=True)
    return index
