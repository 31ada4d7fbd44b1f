"""Tab Compare: several systems side by side, with one portrait and one voice."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image, ImageDraw

from vasa_hf.demo.files import save_settings
from vasa_hf.demo.handler import MINE, RequestHandler, require
from vasa_hf.demo.jobs import Job, Update
from vasa_hf.demo.models import SYSTEMS, Models
from vasa_hf.demo.settings import BACKGROUNDS, TalkSettings
from vasa_hf.demo.talk import EXAMPLE_VOICE, build_voice
from vasa_hf.demo.video import PREPARING, write_video
from vasa_hf.demo.widgets import PRIVATE, VideoJob
from vasa_hf.media.ffmpeg import parse_fps
from vasa_hf.motion.controls import parse_controls
from vasa_hf.outputs import to_uint8

#: Choice of the page: no avatar, the portrait of the tab Talk.
TALK_PORTRAIT = "the portrait of the tab Talk"


def compare_systems(
    models: Models,
    job: Job,
    avatar: str | None,
    portrait: str,
    audio: str,
    settings: TalkSettings,
    camera: str = "fixed",
    systems: Sequence[str] = SYSTEMS,
    max_seconds: float = 60.0,
) -> Iterator[Update]:
    """Show several systems side by side with one portrait and one voice; the updates are those of `make_talk`.

    VASA-1 and VASA-3D make the same motion, MoDA and GAIA their own.

    Args:
        models (`Models`): The pipelines.
        job (`Job`): For the files.
        avatar (`str`, *optional*): Name or folder of the avatar, which VASA-3D needs.
        portrait (`str`): Its portrait, or any other.
        audio (`str`): Voice file.
        settings (`TalkSettings`): Settings.
        camera (`str`): Of the avatar: "fixed" or "orbit".
        systems (`Sequence[str]`): Some of `SYSTEMS`; shown in that order.
        max_seconds (`float`): Longest voice.

    Yields:
        `Update`.

    Raises:
        ValueError: If there is no such system, or VASA-3D has no avatar.
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
        "GAIA": lambda: (models.gaia, portrait, {"num_inference_steps": settings.steps}),
    }
    if not systems or not set(systems) <= set(makers):
        raise ValueError(f"`systems` must be some of {list(makers)}, got {list(systems)}.")
    if avatar is None and "VASA-3D" in systems:
        raise ValueError("VASA-3D needs an avatar: fit one in the tab 3D, or leave VASA-3D out of `systems`.")
    names = [name for name in makers if name in systems]
    chosen = [makers[name]() for name in names]
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
    yield from write_video(job, join_frames(videos, names), num_frames, fps, (samples, rate), video, name)
    more = {"systems": names, "camera": camera, "seed": seed}
    file = save_settings(job.folder / "settings.json", name, {"image": portrait, "audio": audio}, more, began)
    yield Update("Done", num_frames, num_frames, 0.0, files={"video": video, "settings": file})


def join_frames(videos: Sequence[Iterator[Any]], names: Sequence[str]) -> Iterator[np.ndarray]:
    """Yield frames of several systems side by side, each under its name.

    Args:
        videos (`Sequence[Iterator]`): Each gives `TalkingFaceOutput`s with frames of type "np" of one height.
        names (`Sequence[str]`): Of the systems.

    Yields:
        `np.ndarray` of shape `(height, width, 3)`, uint8; the height is that of the frames and of the names.
    """
    streams = [(frame for chunk in video for frame in to_uint8(chunk.frames)) for video in videos]
    titles = None
    for frames in zip(*streams, strict=True):
        if titles is None:
            titles = [
                _draw_title(name, frame.shape[1], frame.shape[0]) for name, frame in zip(names, frames, strict=True)
            ]
        yield np.concatenate([np.concatenate(part) for part in zip(titles, frames, strict=True)], axis=1)


def _draw_title(name: str, width: int, height: int) -> np.ndarray:
    """A name as `(height // 8, width, 3)`, uint8, black on white; the height is even, as video codecs need it."""
    image = Image.new("RGB", (width, height // 16 * 2), "white")
    place = (image.width / 2, image.height / 2)
    ImageDraw.Draw(image).text(place, name, fill="black", font_size=round(0.65 * image.height), anchor="mm")
    return np.asarray(image)


# --- page -------------------------------------------------------------------------------------------------------------


def build_compare_tab(handler: RequestHandler, consent: gr.Checkbox, image: gr.Image) -> None:
    """Build the tab; `image` is the portrait of the tab Talk."""
    offered = [system for system in SYSTEMS if system != "GAIA" or handler.about["gaia"]]
    gr.Markdown("One portrait and one voice. VASA-1 and VASA-3D make the same motion, the others their own.")
    with gr.Row():
        choices = [*handler.about["avatars"], MINE, TALK_PORTRAIT]
        name = gr.Dropdown(choices, label="Avatar or portrait", elem_classes="avatar")
        camera = gr.Radio(["fixed", "orbit"], value="fixed", label="Camera of VASA-3D")
        seed = gr.Number(1, precision=0, label="Seed")
        systems = gr.CheckboxGroup(offered, value=offered, label="Systems")
    audio = build_voice(EXAMPLE_VOICE)
    job = VideoJob(handler, "Compare", "Side by side", "compare")

    def compare(
        session: str,
        agreed: bool,
        name: str,
        image: str | None,
        audio: str | None,
        camera: str,
        seed: int | None,
        systems: Sequence[str],
    ) -> Iterator[Update]:
        handler.check_consent(agreed)
        if name == TALK_PORTRAIT:
            avatar, portrait = None, require(image, "a portrait (tab Talk)", "portrait")
        else:
            avatar, portrait = handler.avatar_path(session, name), handler.avatar_portrait(session, name)
        audio, settings = require(audio, "a voice", "voice"), TalkSettings(seed=seed)
        return handler.stream(compare_systems, session, agreed, avatar, portrait, audio, settings, camera, systems)

    def choose_systems(name: str) -> list[str]:
        return [system for system in offered if name != TALK_PORTRAIT or system != "VASA-3D"]

    name.change(choose_systems, name, systems, queue=False, show_progress="hidden", **PRIVATE)
    job.connect_video(compare, [consent, name, image, audio, camera, seed, systems], "compare_live")
