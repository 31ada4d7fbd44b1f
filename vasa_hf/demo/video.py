"""Talking videos: played while they are made, and kept as one file with its settings."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vasa_hf.demo.files import save_settings
from vasa_hf.demo.jobs import Job, Pace, Update
from vasa_hf.demo.settings import TalkSettings
from vasa_hf.media.ffmpeg import parse_fps
from vasa_hf.media.segments import SegmentWriter
from vasa_hf.media.video import VideoWriter
from vasa_hf.outputs import to_uint8

PREPARING, MAKING = "Preparing", "Making frames"


def make_video(
    job: Job,
    pipe: Any,
    subject: Any,
    sound: tuple[np.ndarray, int],
    settings: TalkSettings,
    inputs: dict[str, str],
    more: dict[str, Any] | None = None,
    **view: Any,
) -> Iterator[Update]:
    """Make a talking video of a prepared subject.

    Args:
        job (`Job`): For the files.
        pipe (`TalkingHeadPipeline`): The pipeline.
        subject (`Subject`): Prepared by the pipeline.
        sound (`tuple` of `np.ndarray` of shape `(samples,)` and `int`): The voice and its rate.
        settings (`TalkSettings`): Settings.
        inputs (`dict[str, str]`): Input files, named in the settings file.
        more (`dict`, *optional*): More entries of the settings file.
        **view: Options of the pipeline's view.

    Yields:
        `Update`: as `make_talk`.
    """
    job.check()
    fps, seed, began = parse_fps(settings.fps), settings.chosen_seed(), time.monotonic()
    chunks = pipe.stream(
        subject,
        sound,
        **settings.motion_options(),
        **view,
        fps=fps,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    )
    num_frames = math.ceil(len(sound[0]) * fps / sound[1])
    frames = (frame for chunk in chunks for frame in to_uint8(chunk.frames))
    video = job.folder / "talking_face.mp4"
    yield from write_video(job, frames, num_frames, fps, sound, video, pipe.model_name)
    used = {**dataclasses.asdict(settings), **(more or {}), "seed": seed}
    file = save_settings(job.folder / "settings.json", pipe.model_name, inputs, used, began)
    yield Update("Done", num_frames, num_frames, 0.0, files={"video": video, "settings": file})


def write_video(
    job: Job,
    frames: Iterable[np.ndarray],
    num_frames: int,
    fps: Fraction,
    sound: tuple[np.ndarray, int] | None,
    path: Path,
    model_name: str | None,
) -> Iterator[Update]:
    """Write frames as one file and, at the same time, as segments that can be played.

    Args:
        job (`Job`): Checked before each frame.
        frames (`Iterable` of `np.ndarray` of shape `(height, width, 3)`): uint8, made lazily.
        num_frames (`int`): Their number.
        fps (`Fraction`): Frames per second.
        sound (`tuple`, *optional*): Samples `(n,)` and their rate.
        path (`Path`): The `.mp4` file.
        model_name (`str`, *optional*): For the note in the file that it is synthetic.

    Yields:
        `Update`: with segments.
    """
    frames, pace, provenance = iter(frames), Pace(), {"model": model_name} if model_name else True
    segments_folder = job.folder / "segments"
    segments_folder.mkdir()
    yield Update(MAKING, 0, num_frames)
    first = next(frames)
    size = (first.shape[1], first.shape[0])
    with ExitStack() as stack:
        live = stack.enter_context(SegmentWriter(segments_folder, fps, size, sound, provenance=provenance))
        file = stack.enter_context(VideoWriter(path, fps, size, sound, provenance=provenance))
        for frame in _with_first(first, frames):
            job.check()
            live.write(frame)
            file.write(frame)
            left = pace.left(MAKING, file.num_frames, num_frames)
            segments = tuple(live.take())
            if segments or file.num_frames % 5 == 0:
                yield Update(MAKING, file.num_frames, num_frames, left, segments)
        live.close()
        yield Update("Writing the file", num_frames, num_frames, None, tuple(live.take()))


def _with_first(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from rest
