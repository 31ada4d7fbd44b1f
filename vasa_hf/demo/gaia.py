"""Tab GAIA: head pose, landmarks and instructions as controls of a talking portrait."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
import torch

from vasa_hf.demo.files import digest, save_settings
from vasa_hf.demo.handler import RequestHandler, require
from vasa_hf.demo.jobs import Job, Update
from vasa_hf.demo.models import Models
from vasa_hf.demo.settings import RATES, SeedSettings
from vasa_hf.demo.video import PREPARING, make_video, write_video
from vasa_hf.demo.widgets import FIELDS, VideoJob, add_api, session_name
from vasa_hf.media.ffmpeg import parse_fps
from vasa_hf.outputs import to_uint8

SPEECH, INSTRUCTION = "the voice of the tab Talk", "an instruction"
PREDICTED, CONSTANT, OF_VIDEO = "predicted", "constant", "of a video"
EXAMPLES = (
    *("please smile", "turn your head left", "turn your head right", "open your mouth wide", "look surprised"),
    *("nod your head", "close your eyes"),
)


@dataclass(frozen=True)
class GaiaSettings(SeedSettings):
    """Settings of a video by GAIA.

    Args:
        text (`str`): Instruction; with one, the voice is not used.
        seconds (`float`): Length of a video by an instruction.
        pose (`str`): Head pose: `"predicted"`, `"constant"` or `"of a video"`.
        yaw_deg, pitch_deg, roll_deg (`float`): The constant one; > 0 is left in the image, down, and clockwise.
        steps (`int`): Denoising steps.
        seed (`int`): Negative: a random one.
        fps (`str`): Frames per second.
        paste_back (`bool`): Make the whole image, with the face pasted back into it.
    """

    text: str = ""
    seconds: float = 3.0
    pose: str = PREDICTED
    yaw_deg: float = 0.0
    pitch_deg: float = 0.0
    roll_deg: float = 0.0
    steps: int = 20
    seed: int = -1
    fps: str = "25"
    paste_back: bool = False

    def motion_options(self) -> dict[str, Any]:
        """Options of a call of `GaiaAvatarPipeline`, without those that are files."""
        options: dict[str, Any] = {"num_inference_steps": int(self.steps)}
        if self.pose == CONSTANT:
            options["pose"] = tuple(math.radians(angle) for angle in (self.yaw_deg, self.pitch_deg, self.roll_deg))
        if self.text:
            options["text"] = self.text
        return options


def make_gaia_video(
    models: Models,
    job: Job,
    image: str,
    audio: str | None,
    settings: GaiaSettings,
    pose_video: str | None = None,
    reference_video: str | None = None,
    face: int | None = None,
    max_seconds: float = 120.0,
) -> Iterator[Update]:
    """Make a portrait speak, or follow an instruction, by GAIA; the updates are those of `make_talk`.

    Args:
        models (`Models`): The pipelines.
        job (`Job`): For the files.
        image (`str`): Portrait file.
        audio (`str`, *optional*): Voice file; needed without `settings.text`.
        settings (`GaiaSettings`): Settings.
        pose_video (`str`, *optional*): Video whose head poses are used, with `settings.pose` "of a video".
        reference_video (`str`, *optional*): Video that all landmarks but those of mouth and jaw follow.
        face (`int`, *optional*): Which face of the image; 0 is the largest.
        max_seconds (`float`, defaults to 120): Longest voice.

    Yields:
        `Update`.

    Raises:
        ValueError: If an argument cannot be used.
    """
    yield Update(PREPARING)
    pipe, inputs = models.gaia, {"image": image}
    key = ("gaia", digest(image), face)
    portrait = models.portraits.get(key, lambda: pipe.prepare_portrait(image, face))
    view: dict[str, Any] = {"paste_back": settings.paste_back}
    if settings.pose == OF_VIDEO:
        view["pose"] = inputs["pose_video"] = require(pose_video, "a video for the head pose", "pose-video")
    if reference_video and not settings.text:
        view["edit_landmarks"] = inputs["reference_video"] = reference_video
    if not settings.text:
        inputs["audio"] = require(audio, "a voice", "voice")
        sound = models.sound(audio, max_seconds)
        yield from make_video(job, pipe, portrait, sound, settings, inputs, {"face": face}, **view)
        return
    fps, seed, began = parse_fps(settings.fps), settings.chosen_seed(), time.monotonic()
    options = {**settings.motion_options(), **view, "seconds": float(settings.seconds), "fps": fps}
    made = pipe(portrait, generator=torch.Generator().manual_seed(seed), output_type="np", **options)
    count, video = len(made.frames), job.folder / "talking_face.mp4"
    yield from write_video(job, to_uint8(made.frames), count, fps, None, video, pipe.model_name)
    used = {**dataclasses.asdict(settings), "seed": seed, "face": face}
    file = save_settings(job.folder / "settings.json", pipe.model_name, inputs, used, began)
    yield Update("Done", count, count, 0.0, files={"video": video, "settings": file})


# --- page -------------------------------------------------------------------------------------------------------------


def build_gaia_tab(handler: RequestHandler, consent: gr.Checkbox, image: gr.Image, audio: gr.Audio) -> None:
    """Build the tab; `image` and `audio` are the fields of the tab Talk."""
    holds, reads = (name in handler.about["gaia_controls"] for name in ("landmark_denoiser", "text_denoiser"))
    does = [
        "its head pose is given",
        *["all but its mouth follows a video"] * holds,
        *["it follows a sentence"] * reads,
    ]
    gr.Markdown(f"GAIA with the portrait of the tab Talk: {', or '.join(does)}.")
    own = GaiaSettings()
    with gr.Row():
        with gr.Column(min_width=280):
            source = gr.Radio([SPEECH, INSTRUCTION], value=SPEECH, label="Driven by", visible=reads)
            with gr.Column(visible=False) as words:
                text = gr.Dropdown(
                    list(EXAMPLES), value=EXAMPLES[0], allow_custom_value=True, label="Instruction", elem_id="gaia-text"
                )
                seconds = gr.Slider(1, 10, own.seconds, step=0.5, label="Length (seconds)")
            pose = gr.Radio([PREDICTED, CONSTANT, OF_VIDEO], value=PREDICTED, label="Head pose", elem_id="gaia-pose")
            with gr.Column(visible=False) as angles:
                yaw = gr.Slider(-45, 45, 0, step=1, label="Yaw (degrees)", info="above 0: image left")
                pitch = gr.Slider(-30, 30, 0, step=1, label="Pitch (degrees)", info="above 0: down")
                roll = gr.Slider(-30, 30, 0, step=1, label="Roll (degrees)", info="above 0: clockwise")
        with gr.Column(min_width=280):
            pose_video = gr.Video(
                label="Video for the head pose",
                visible=False,
                sources=["upload"],
                height=240,
                elem_classes="pose-video",
            )
            with gr.Column(visible=holds) as landmarks:
                reference = gr.Video(
                    label="Reference video: all but mouth and jaw follow it", sources=["upload"], height=240
                )
            with gr.Accordion("Steps, seed, image", open=False), gr.Row():
                steps = gr.Slider(1, 50, own.steps, step=1, label="Denoising steps", min_width=140)
                seed = gr.Number(own.seed, precision=0, label="Seed", info="below 0: random", min_width=140)
                fps = gr.Dropdown(RATES, value=own.fps, label="Frames per second", min_width=140)
                paste_back = gr.Checkbox(own.paste_back, label="Paste back", info="into the whole image", min_width=140)
        with gr.Column(min_width=280):
            job = VideoJob(handler, "Make it move", "GAIA", "gaia")

    def show_source(source: str) -> tuple:
        return gr.update(visible=source == INSTRUCTION), gr.update(visible=holds and source == SPEECH)

    def show_pose(pose: str) -> tuple:
        return gr.update(visible=pose == CONSTANT), gr.update(visible=pose == OF_VIDEO)

    def make(session: str, agreed: bool, source: str, image: Any, audio: Any, *values: Any) -> Iterator[Update]:
        handler.check_consent(agreed)
        text, pose_video, reference, *rest = values
        settings = GaiaSettings(require(text, "an instruction", "instruction") if source == INSTRUCTION else "", *rest)
        files = (require(image, "a portrait", "portrait"), audio, settings, pose_video, reference)
        return handler.stream(make_gaia_video, session, agreed, *files)

    def gaia_api(request: gr.Request, consent, image, audio, text, pose_video, reference_video, *settings) -> Any:
        """Make a portrait speak or follow an instruction by GAIA; returns the video and its settings (JSON)."""
        source = INSTRUCTION if text else SPEECH
        values = (text, pose_video, reference_video, *settings)
        for update in make(session_name(request), consent, source, image, audio, *values):
            if update.files:
                yield str(update.files["video"]), str(update.files["settings"])

    quiet = {"queue": False, "api_visibility": "private"}
    source.change(show_source, source, [words, landmarks], **quiet)
    pose.change(show_pose, pose, [angles, pose_video], **quiet)
    rest = [seconds, pose, yaw, pitch, roll, steps, seed, fps, paste_back]
    job.connect_video(make, [consent, source, image, audio, text, pose_video, reference, *rest], "gaia_live")
    names = list(GaiaSettings.__dataclass_fields__)[1:]
    fields = FIELDS | {
        "text": "An instruction such as 'please smile', in place of a voice; empty with a voice.",
        "pose_video": "A video whose head poses are used, with the pose 'of a video'.",
        "reference_video": "A video that all landmarks but those of mouth and jaw follow.",
        **dict(zip(names, (one.label for one in rest), strict=True)),
    }
    made = [gr.Video(visible=False), gr.File(visible=False)]
    inputs = [consent, image, audio, text, pose_video, reference, *rest]
    add_api(gaia_api, "gaia", inputs, made, fields, concurrency_limit=None)
