"""Looking inside: what the parts of the motion mean, and the systems beside each other."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor

from vasa_hf.media.ffmpeg import parse_fps
from vasa_hf.motion import POSE_DIM
from vasa_hf.motion.controls import parse_controls, rebase_motion
from vasa_hf.studio.avatars import SideBySide
from vasa_hf.studio.jobs import Job, Update
from vasa_hf.studio.models import PRIORS, SYSTEMS, Models
from vasa_hf.studio.settings import BACKGROUNDS, TalkSettings
from vasa_hf.studio.talk import PREPARING, save_settings, write

# Name -> channel of the pose, and what one unit of the slider adds to it.
_POSE = {"yaw": (0, math.radians(1)), "pitch": (1, math.radians(1)), "roll": (2, math.radians(1))}


def _directions(file: Path, emotions: Sequence[str]) -> dict[str, Tensor]:
    """Known directions of z_dyn `(dynamics,)` by name."""
    known = load_file(file) if file.is_file() else {}
    found = {"blink": known["blink"]} if "blink" in known else {}
    found |= {f"gaze {name}": row for name, row in zip(("yaw", "pitch"), known.get("gaze", ()), strict=False)}
    return found | dict(zip(emotions, known.get("emotion", ()), strict=False))


@torch.no_grad()
def shaped(models: Models, image: str, amounts: Mapping[str, float]) -> Image.Image:
    """A portrait with its own motion changed along named directions.

    Args:
        models (`Models`): What draws it.
        image (`str`): The portrait's file.
        amounts (`Mapping[str, float]`): "yaw", "pitch", "roll" in degrees, "size" in percent, or
            one of the sliders that `described` names.
    """
    pipe, portrait = models.faces, models.portrait(image)
    folder = Path(pipe.face_autoencoder.config.get("_name_or_path") or "").parent
    motion, known = portrait.motion.clone(), _directions(folder / PRIORS, pipe.motion_transformer.config.emotions)
    for name, amount in amounts.items():
        if name in _POSE:
            channel, unit = _POSE[name]
            motion[:, channel] += amount * unit
        elif name == "size":
            motion[:, 5] *= 1 + amount / 100
        elif name in known:
            motion[:, POSE_DIM:] += amount * known[name].to(motion)
        elif amount:
            raise ValueError(f"`amounts` knows {[*_POSE, 'size', *known]}, got {name!r}.")
    return _picture(next(pipe.decode_frames(portrait, motion))[0])


@torch.no_grad()
def swaps(
    models: Models, job: Job, images: Sequence[str], audio: str, seed: int = 0, times: int = 5
) -> Iterator[Update]:
    """Draw what pose and dynamics carry, as VASA-1's Fig. A.1.

    The same motion on several faces; then motion whose pose, and motion whose dynamics, are those of another take.

    Args:
        models (`Models`): What makes it.
        job (`Job`): Where to, and until when.
        images (`Sequence[str]`): Portraits' files.
        audio (`str`): The voice's file.
        seed (`int`): Of the first take; the other has the next.
        times (`int`): Columns.

    Yields:
        `Update`: at the end `files` with `sheet`, a PNG.
    """
    yield Update(PREPARING)
    pipe = models.faces
    portraits = [models.portrait(image) for image in images]
    samples, rate = models.sound(audio, 20.0)
    takes = []
    for index in range(2):
        job.check()
        yield Update("Making motion", index, 2)
        generator = torch.Generator().manual_seed(seed + index)
        out = pipe(portraits[0], (samples, rate), generator=generator, output_type="latent", head_motion=1.5)
        takes.append(out.motion)
    first, second = takes
    chosen = torch.linspace(0, first.shape[1] - 1, times + 2).round().long()[1:-1]
    rows = [(f"face {index + 1}: the same motion", portrait, first) for index, portrait in enumerate(portraits)]
    rows += [
        ("pose of another take", portraits[0], torch.cat([second[..., :POSE_DIM], first[..., POSE_DIM:]], -1)),
        ("dynamics of another take", portraits[0], torch.cat([first[..., :POSE_DIM], second[..., POSE_DIM:]], -1)),
    ]
    pictures = []
    for index, (text, portrait, motion) in enumerate(rows):
        job.check()
        yield Update("Drawing", index, len(rows))
        own = motion if portrait is portraits[0] else rebase_motion(motion, portrait.motion)
        drawn = [_picture(frame) for part in pipe.decode_frames(portrait, own[0, chosen]) for frame in part]
        pictures.append((text, [_source(portrait), *drawn]))
    sheet(pictures).save(job.folder / "swaps.png")
    yield Update("Done", len(rows), len(rows), 0.0, files={"sheet": job.folder / "swaps.png"})


def sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], side: int = 192) -> Image.Image:
    """Rows of pictures, each under its text."""
    line = 30  # a page shows the sheet at half its size
    whole = Image.new("RGB", (side * max(len(pictures) for _, pictures in rows), (side + line) * len(rows)), "white")
    draw = ImageDraw.Draw(whole)
    for row, (text, pictures) in enumerate(rows):
        top = row * (side + line)
        draw.text((6, top + 4), text, fill="black", font_size=20)
        for column, picture in enumerate(pictures):
            whole.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (column * side, top + line))
    return whole


def compare(
    models: Models,
    job: Job,
    avatar: str,
    portrait: str,
    audio: str,
    settings: TalkSettings,
    camera: str = "fixed",
    systems: Sequence[str] = SYSTEMS,
    max_seconds: float = 60.0,
) -> Iterator[Update]:
    """Systems beside each other with one portrait and one voice; the updates are those of `talk`.

    VASA-1 and VASA-3D make the same motion, MoDA its own.

    Args:
        models (`Models`): What makes it.
        job (`Job`): Where to, and until when.
        avatar (`str`): The avatar's name or folder.
        portrait (`str`): The picture that it was made of.
        audio (`str`): The voice's file.
        settings (`TalkSettings`): How.
        camera (`str`): Of the avatar: "fixed" or "orbit".
        systems (`Sequence[str]`): Of those that `described` names, from left to right.
        max_seconds (`float`): Longest voice.

    Yields:
        `Update`.
    """
    yield Update(PREPARING)
    began, fps, seed = time.monotonic(), parse_fps(settings.fps), settings.chosen_seed()
    samples, rate = models.sound(audio, max_seconds)
    parse_controls(**settings.controls(), emotions=models.faces.motion_transformer.config.emotions)
    steps = {"num_inference_steps": settings.steps, "head_motion": settings.head_motion}
    makers = {
        "VASA-1": lambda: (models.faces, models.portrait(portrait, None, settings.size), settings.motion_options()),
        "VASA-3D": lambda: (
            models.avatars,
            models.avatars.view(avatar, camera, fps, settings.size, BACKGROUNDS["white"]),
            settings.motion_options(),
        ),
        "MoDA": lambda: (models.heads, portrait, steps),
    }
    if not systems or not set(systems) <= set(makers):
        raise ValueError(f"`systems` must be some of {list(makers)}, got {list(systems)}.")
    chosen = [makers[name]() for name in makers if name in systems]  # in this order, whatever that of the clicks
    videos = [
        pipe.stream(
            subject,
            (samples, rate),
            **options,
            fps=fps,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        )
        for pipe, subject, options in chosen
    ]
    num_frames = math.ceil(len(samples) * fps / rate)
    video, name = job.folder / "compared.mp4", models.faces.model_name
    yield from write(job, SideBySide(*videos), num_frames, fps, (samples, rate), video, name)
    more = {"systems": [name for name in makers if name in systems], "camera": camera, "seed": seed}
    file = save_settings(job.folder / "settings.json", name, {"image": portrait, "audio": audio}, more, began)
    yield Update("Done", num_frames, num_frames, 0.0, files={"video": video, "settings": file})


def _picture(frame: Tensor) -> Image.Image:
    """`(3, height, width)` in [0, 1] to a picture."""
    return Image.fromarray((frame * 255).round().byte().movedim(0, -1).numpy())


def _source(portrait: Any) -> Image.Image:
    """The portrait's square."""
    array = portrait.crop.image.mul(0.5).add(0.5).clamp(0, 1).movedim(0, -1).numpy()
    return Image.fromarray(np.rint(array * 255).astype(np.uint8))
