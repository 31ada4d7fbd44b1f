"""Tab Explore: a portrait moved along named directions of the motion, and pose and dynamics exchanged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor

from vasa_hf.demo.handler import RequestHandler, explain_error, require, run_short
from vasa_hf.demo.jobs import Job, Update
from vasa_hf.demo.models import PRIORS, Models
from vasa_hf.demo.video import PREPARING
from vasa_hf.demo.widgets import LAST, PRIVATE, JobControls, add_api
from vasa_hf.motion import POSE_DIM
from vasa_hf.motion.controls import rebase_motion

POSES = {"yaw": "degrees", "pitch": "degrees", "roll": "degrees", "size": "percent"}
# Name -> channel of the pose, and the step of one unit of the slider.
_POSE = {"yaw": (0, math.radians(1)), "pitch": (1, math.radians(1)), "roll": (2, math.radians(1))}


def _directions(file: Path, emotions: Sequence[str]) -> dict[str, Tensor]:
    """Known directions of z_dyn `(dynamics,)` by name."""
    known = load_file(file) if file.is_file() else {}
    found = {"blink": known["blink"]} if "blink" in known else {}
    found |= {f"gaze {name}": row for name, row in zip(("yaw", "pitch"), known.get("gaze", ()), strict=False)}
    return found | dict(zip(emotions, known.get("emotion", ()), strict=False))


@torch.no_grad()
def shift_motion(models: Models, image: str, amounts: Mapping[str, float]) -> Image.Image:
    """Render a portrait with its own motion shifted along named directions.

    Args:
        models (`Models`): The pipelines.
        image (`str`): Portrait file.
        amounts (`Mapping[str, float]`): "yaw", "pitch", "roll" in degrees, "size" in percent, or
            sliders of `describe`.
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
    return _to_image(next(pipe.decode_frames(portrait, motion))[0])


@torch.no_grad()
def exchange_motion(
    models: Models, job: Job, images: Sequence[str], audio: str, seed: int = 0, times: int = 5
) -> Iterator[Update]:
    """Show what pose and dynamics carry, as VASA-1's Fig. A.1.

    The same motion on several faces; then motion with the pose, and with the dynamics, of another take.

    Args:
        models (`Models`): The pipelines.
        job (`Job`): For the files.
        images (`Sequence[str]`): Portrait files.
        audio (`str`): Voice file.
        seed (`int`): Of the first take; the second take has the next one.
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
    drawn_rows = []
    for index, (text, portrait, motion) in enumerate(rows):
        job.check()
        yield Update("Drawing", index, len(rows))
        own = motion if portrait is portraits[0] else rebase_motion(motion, portrait.motion)
        drawn = [_to_image(frame) for part in pipe.decode_frames(portrait, own[0, chosen]) for frame in part]
        drawn_rows.append((text, [_crop_image(portrait), *drawn]))
    draw_sheet(drawn_rows).save(job.folder / "swaps.png")
    yield Update("Done", len(rows), len(rows), 0.0, files={"sheet": job.folder / "swaps.png"})


def draw_sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], side: int = 192) -> Image.Image:
    """Rows of images, each under its text."""
    line = 30  # the page shows the sheet at half its size
    whole = Image.new("RGB", (side * max(len(pictures) for _, pictures in rows), (side + line) * len(rows)), "white")
    draw = ImageDraw.Draw(whole)
    for row, (text, pictures) in enumerate(rows):
        top = row * (side + line)
        draw.text((6, top + 4), text, fill="black", font_size=20)
        for column, picture in enumerate(pictures):
            whole.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (column * side, top + line))
    return whole


def _to_image(frame: Tensor) -> Image.Image:
    """`(3, height, width)` in [0, 1] as an image."""
    return Image.fromarray((frame * 255).round().byte().movedim(0, -1).numpy())


def _crop_image(portrait: Any) -> Image.Image:
    """Crop of a portrait."""
    array = portrait.crop.image.mul(0.5).add(0.5).clamp(0, 1).movedim(0, -1).numpy()
    return Image.fromarray(np.rint(array * 255).astype(np.uint8))


# --- page -------------------------------------------------------------------------------------------------------------


def build_explore_tab(handler: RequestHandler, consent: gr.Checkbox, image: gr.Image, audio: gr.Audio) -> None:
    """Build the tab; portrait and voice are those of the tab Talk."""
    gr.Markdown("Portrait and voice are those of the tab Talk.")
    names = (*POSES, *handler.about["sliders"])
    with gr.Row():
        with gr.Column(min_width=280):
            moved = gr.Image(label="Portrait, moved along named directions", interactive=False, height=300)
            note = gr.Markdown(elem_classes="note")
            sliders = [gr.Slider(-40, 40, 0, step=1, label=f"Pose: {one} ({unit})") for one, unit in POSES.items()]
            with gr.Row():
                sliders += [gr.Slider(-2, 2, 0, step=0.1, label=one, min_width=220) for one in names[len(POSES) :]]
        with gr.Column(min_width=280):
            gr.Markdown(
                "The same motion on several faces; then its pose, and its dynamics, exchanged with another take."
            )
            others = gr.File(label="Up to two other portraits", file_count="multiple", file_types=["image"])
            seed = gr.Number(1, precision=0, label="Seed")
            job = JobControls(handler, "Exchange")
            sheet = gr.Image(label="Sheet", interactive=False, visible=False, elem_id="exchanged")

    def shape(consent, image, *amounts) -> Any:
        """Shift the motion of a portrait along named directions."""
        handler.check_consent(consent)
        image = require(image, "a portrait (tab Talk)", "portrait")
        return run_short(shift_motion, image, dict(zip(names, amounts, strict=True)))

    def shape_on_page(agreed: bool, image: str | None, *amounts: float) -> tuple:
        try:
            return shape(agreed, image, *amounts), ""
        except Exception as error:
            return None, f"Error: {explain_error(error)}"

    def exchange(
        session: str, agreed: bool, image: str, others: list | None, audio: str, seed: int
    ) -> Iterator[Update]:
        handler.check_consent(agreed)
        images = [require(image, "a portrait (tab Talk)", "portrait"), *(others or [])][:3]
        audio = require(audio, "a voice (tab Talk)", "voice")
        return handler.stream(exchange_motion, session, agreed, images, audio, int(seed or 0))

    def show(update: Update) -> tuple:
        return (gr.update(value=str(update.files["sheet"]), visible=True) if update.files else gr.skip(),)

    def clear(begins: bool) -> tuple:
        return (gr.update(value=None, visible=False),)

    events = [slider.input for slider in sliders]  # also by keyboard
    gr.on(events, shape_on_page, [consent, image, *sliders], [moved, note], **LAST, **PRIVATE)
    add_api(shape, "shape", [consent, image, *sliders], moved, dict.fromkeys(names, "Amount."))
    job.connect(exchange, [consent, image, others, audio, seed], [sheet], show, clear, "swaps")
