"""Talking videos: played from their first second on, and kept as one file with its settings."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vasa_hf
from vasa_hf.media.audio import load_audio
from vasa_hf.media.ffmpeg import check_seconds, parse_fps
from vasa_hf.media.segments import SegmentWriter
from vasa_hf.media.video import VideoReader, VideoWriter
from vasa_hf.motion import resample_motion
from vasa_hf.outputs import to_uint8
from vasa_hf.studio.jobs import Job, Pace, Update, told
from vasa_hf.studio.models import Models, digest
from vasa_hf.studio.settings import TalkSettings

PREPARING, MAKING, READING = "Preparing", "Making frames", "Reading the driving video"


def talk(
    models: Models,
    job: Job,
    image: str,
    audio: str,
    settings: TalkSettings,
    face: int | None = None,
    max_seconds: float = 120.0,
) -> Iterator[Update]:
    """Make a portrait talk.

    Args:
        models (`Models`): What makes it.
        job (`Job`): Where to, and until when.
        image (`str`): The portrait's file.
        audio (`str`): The voice's file.
        settings (`TalkSettings`): How.
        face (`int`, *optional*): Which face of the picture, 0 is the largest.
        max_seconds (`float`, defaults to 120): Longest voice.

    Yields:
        `Update`: pieces of the video as they come; at the end `files` with `video` and `settings`.

    Raises:
        ValueError: If an argument is unfit.
        Stopped: If the job was stopped.
    """
    yield Update(PREPARING)
    pipe = models.faces
    samples, rate = models.sound(audio, max_seconds)
    portrait = models.portrait(image, face, settings.size)
    inputs = {"image": image, "audio": audio}
    yield from perform(
        job, pipe, portrait, (samples, rate), settings, inputs, {"face": face}, paste_back=settings.paste_back
    )


def perform(
    job: Job,
    pipe: Any,
    subject: Any,
    sound: tuple[np.ndarray, int],
    settings: TalkSettings,
    inputs: dict[str, str],
    more: dict[str, Any] | None = None,
    **view: Any,
) -> Iterator[Update]:
    """Let a portrait or an avatar before a camera speak.

    Args:
        job (`Job`): Where to, and until when.
        pipe (`TalkingHeadPipeline`): What makes it.
        subject (`Subject`): Who, prepared by the pipeline.
        sound (`tuple` of `np.ndarray` of shape `(samples,)` and `int`): What is said, and its rate.
        settings (`TalkSettings`): How.
        inputs (`dict[str, str]`): Files that this was made of, to be named in the settings.
        more (`dict`, *optional*): Further settings to be told.
        **view: Options of the pipeline's view.

    Yields:
        `Update`: as `talk`.
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
    yield from write(job, frames, num_frames, fps, sound, video, pipe.model_name)
    told_settings = {**dataclasses.asdict(settings), **(more or {}), "seed": seed}
    file = save_settings(job.folder / "settings.json", pipe.model_name, inputs, told_settings, began)
    yield Update("Done", num_frames, num_frames, 0.0, files={"video": video, "settings": file})


def drive(
    models: Models,
    job: Job,
    image: str,
    video: str,
    settings: TalkSettings,
    face: int | None = None,
    relative: bool = True,
    max_seconds: float = 60.0,
) -> Iterator[Update]:
    """Let a portrait do what the face of a video does; the arguments and updates are those of `talk`.

    `relative` adds the movement since the first driving frame to the portrait's own pose and expression.
    """
    yield Update(PREPARING)
    pipe, began = models.faces, time.monotonic()
    reader = VideoReader(video, max_seconds=max_seconds)
    expected = reader.num_frames or 0
    check_seconds(expected / float(reader.fps), max_seconds, "driving_video")
    portrait = models.portrait(image, face, settings.size)

    def encode(tell: Any) -> Any:
        def watched() -> Iterator[np.ndarray]:
            for index, frame in enumerate(reader):
                tell(index)
                yield frame

        return pipe.follow_video(portrait, watched(), relative=relative, num_frames=expected)[0]

    pace, messages = Pace(), told(job, encode)
    while True:
        try:
            index = next(messages)
        except StopIteration as end:
            motion = end.value
            break
        if index is not None:
            yield Update(READING, index, expected, pace.left(READING, index, expected))
    fps = parse_fps(settings.fps)
    motion = resample_motion(motion, reader.fps, fps)
    sound = None
    if reader.has_audio:
        samples, rate = load_audio(video, max_seconds=2 * max_seconds)
        sound = (samples.mean(0), rate)
    parts = pipe.decode_frames(portrait, motion[0], settings.paste_back)
    frames = (frame for part in parts for frame in to_uint8(part))
    target = job.folder / "talking_face.mp4"
    yield from write(job, frames, motion.shape[1], fps, sound, target, pipe.model_name)
    told_settings = {"size": settings.size, "fps": str(fps), "paste_back": settings.paste_back, "relative": relative}
    inputs = {"image": image, "driving_video": video}
    file = save_settings(job.folder / "settings.json", pipe.model_name, inputs, told_settings, began)
    yield Update("Done", motion.shape[1], motion.shape[1], 0.0, files={"video": target, "settings": file})


def write(
    job: Job,
    frames: Iterable[np.ndarray],
    num_frames: int,
    fps: Fraction,
    sound: tuple[np.ndarray, int] | None,
    path: Path,
    model_name: str | None,
) -> Iterator[Update]:
    """Write frames as one file and, meanwhile, as pieces that can be played.

    Args:
        job (`Job`): Asked before each frame whether to go on.
        frames (`Iterable` of `np.ndarray` of shape `(height, width, 3)`): uint8; made when they are asked for.
        num_frames (`int`): How many they are.
        fps (`Fraction`): Frames a second.
        sound (`tuple`, *optional*): Samples `(n,)` and their rate.
        path (`Path`): The `.mp4` file.
        model_name (`str`, *optional*): For the file's note that it is synthetic.

    Yields:
        `Update`: with pieces.
    """
    frames, pace, provenance = iter(frames), Pace(), {"model": model_name} if model_name else True
    pieces = job.folder / "pieces"
    pieces.mkdir()
    yield Update(MAKING, 0, num_frames)
    first = next(frames)
    size = (first.shape[1], first.shape[0])
    with ExitStack() as stack:
        live = stack.enter_context(SegmentWriter(pieces, fps, size, sound, provenance=provenance))
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


def save_settings(
    path: Path, model_name: str | None, inputs: dict[str, str], settings: dict[str, Any], began: float
) -> Path:
    """Write what a result was made of and how, so that it can be made again.

    Args:
        path (`Path`): The `.json` file.
        model_name (`str`, *optional*): Of the model.
        inputs (`dict[str, str]`): Name of the argument -> file.
        settings (`dict`): Of the job.
        began (`float`): `time.monotonic()` at its beginning.
    """
    about = {
        "made_by": f"vasa_hf {vasa_hf.__version__}",
        "synthetic": "This video was generated by a model. It shows nothing that happened.",
        "made_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "took_seconds": round(time.monotonic() - began, 1),
        "model": model_name,
        "inputs": {name: {"file": Path(file).name, "sha256": digest(file)} for name, file in inputs.items()},
        "settings": settings,
    }
    path.write_text(json.dumps(about, indent=2, default=str) + "\n")
    return path


def _with_first(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from rest
