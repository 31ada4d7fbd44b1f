"""3D avatars: fitted while one looks on, seen from any side, talking, taken away as files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vasa_hf.outputs import to_uint8
from vasa_hf.studio.jobs import Job, Pace, Update, told
from vasa_hf.studio.models import Models
from vasa_hf.studio.settings import BACKGROUNDS, TalkSettings
from vasa_hf.studio.splat_viewer import viewer_camera
from vasa_hf.studio.talk import PREPARING, perform

FIT_STAGES = {
    "start": "Mesh and colours",
    "motion": "Making motion to learn from",
    "frames": "Making frames to learn from",
    "fit": "Fitting",
    "sharpen": "Sharpening",
}


def fit(
    models: Models, job: Job, image: str, target: Path, minutes: float = 6.0, face: int | None = None
) -> Iterator[Update]:
    """Make an avatar of a portrait.

    Args:
        models (`Models`): What makes it.
        job (`Job`): Until when.
        image (`str`): The portrait's file.
        target (`Path`): The avatar's folder; what was there goes.
        minutes (`float`, defaults to 6.0): Wall-clock time.
        face (`int`, *optional*): Which face of the picture.

    Yields:
        `Update`: with previews (target, mesh alone, all, both sides); at the end `files` with `avatar`.

    Raises:
        ValueError: If the picture shows no face that an avatar can be made of.
        Stopped: If the job was stopped.
    """
    if not 0.1 <= minutes <= 60:
        raise ValueError(f"`minutes` must lie in [0.1, 60], got {minutes!r}.")
    yield Update(PREPARING)
    pipe, folder = models.avatars, job.folder / "avatar"
    pace, stage, preview = Pace(), PREPARING, None

    def work(tell: Any) -> Any:
        changes = {"max_minutes": float(minutes), "preview_every": 50}
        return pipe.fit(image, preset="fast", output=folder, face=face, on_progress=tell, **changes)

    for progress in told(job, work):
        if progress is None:
            continue
        stage = FIT_STAGES.get(progress.stage, progress.stage)
        preview = progress.preview or preview
        left = pace.left(stage, progress.done, progress.total)
        yield Update(stage, progress.done, progress.total, left, preview=preview)
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder, target)
    yield Update("Done", 1, 1, 0.0, files={"avatar": target})


def look(
    models: Models,
    avatar: str,
    azimuth_deg: float = 0.0,
    elevation_deg: float = 0.0,
    size: int = 384,
    background: str = "white",
) -> Image.Image:
    """One picture of an avatar from any side.

    Args:
        models (`Models`): What draws it.
        avatar (`str`): Name or folder.
        azimuth_deg (`float`): > 0 from the picture's right.
        elevation_deg (`float`): > 0 from above.
        size (`int`, defaults to 384): Side of the picture.
        background (`str`): A key of `BACKGROUNDS`.
    """
    options = {"elevation_deg": float(elevation_deg), "output_size": size, "background": BACKGROUNDS[background]}
    return models.avatars.contact_sheet(avatar, (float(azimuth_deg),), **options)


@dataclass(frozen=True)
class Exported:
    """An avatar's Gaussians at its portrait's own motion.

    Args:
        ply, splat (`Path`): The files, for programs that know 3DGS and for web viewers.
        camera (`dict`): See `viewer_camera`.
    """

    ply: Path
    splat: Path
    camera: dict[str, Any]


def export(models: Models, avatar: str, folder: Path) -> Exported:
    """Write an avatar's Gaussians.

    Args:
        models (`Models`): What poses it.
        avatar (`str`): Name or folder.
        folder (`Path`): Where to.
    """
    pipe = models.avatars
    loaded = pipe.load_avatar(avatar)
    files = []
    for suffix in (".ply", ".splat"):
        written = pipe.export_sequence(loaded, loaded.own_motion[None], folder / f"export{suffix}", suffix)
        files.append(Path(shutil.move(written[0], folder / f"avatar{suffix}")))
    return Exported(*files, viewer_camera(pipe.view(loaded).camera))


def talk3d(
    models: Models,
    job: Job,
    avatar: str,
    audio: str,
    settings: TalkSettings,
    camera: str = "fixed",
    background: str = "white",
    max_seconds: float = 120.0,
) -> Iterator[Update]:
    """Make an avatar talk; the updates are those of `talk`.

    Args:
        models (`Models`): What makes it.
        job (`Job`): Where to, and until when.
        avatar (`str`): Name or folder.
        audio (`str`): The voice's file.
        settings (`TalkSettings`): How.
        camera (`str`, defaults to "fixed"): "fixed" or "orbit".
        background (`str`): A key of `BACKGROUNDS`.
        max_seconds (`float`, defaults to 120): Longest voice.

    Yields:
        `Update`.
    """
    yield Update(PREPARING)
    pipe = models.avatars
    samples, rate = models.sound(audio, max_seconds)
    view = pipe.view(avatar, camera, settings.fps, settings.size, BACKGROUNDS[background])
    more = {"avatar": Path(avatar).name, "camera": camera, "background": background}
    yield from perform(job, pipe, view, (samples, rate), settings, {"audio": audio}, more)


class SideBySide:
    """Frames of several systems at the same times, one beside the other.

    Args:
        videos (`Iterator`): Each gives `TalkingFaceOutput`s with frames of type "np".
    """

    def __init__(self, *videos: Iterator[Any]):
        self.videos = videos

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield frames as wide as all together."""
        streams = [(frame for chunk in video for frame in to_uint8(chunk.frames)) for video in self.videos]
        for frames in zip(*streams, strict=True):
            yield np.concatenate(frames, axis=1)
