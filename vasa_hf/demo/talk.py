"""Tab Talk: one portrait that speaks with a voice, or moves as the face of a driving video."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

import vasa_hf
from vasa_hf.demo.files import digest, save_settings
from vasa_hf.demo.gaia import GaiaSettings, make_gaia_video
from vasa_hf.demo.handler import RequestHandler, explain_error, require, run_short
from vasa_hf.demo.jobs import Job, Pace, Update, run_in_thread
from vasa_hf.demo.models import Models
from vasa_hf.demo.settings import TalkSettings, build_controls
from vasa_hf.demo.video import PREPARING, make_video, write_video
from vasa_hf.demo.widgets import FIELDS, LAST, PRIVATE, VideoJob, add_api, session_name
from vasa_hf.media.audio import load_audio
from vasa_hf.media.ffmpeg import check_seconds, parse_fps
from vasa_hf.media.speech import INSTALL, VOICES, can_speak, speak
from vasa_hf.media.video import VideoReader
from vasa_hf.motion import resample_motion
from vasa_hf.outputs import to_uint8

ASSETS = Path(vasa_hf.__file__).parent / "assets"
EXAMPLE_FACE, EXAMPLE_VOICE = str(ASSETS / "portrait.jpg"), str(ASSETS / "voice.flac")
VOICE, VIDEO = "a voice", "a driving video"
VASA1, GAIA = "VASA-1", "GAIA"
READING = "Reading the driving video"

# --- work -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FoundFaces:
    """Faces of an image.

    Args:
        boxes (`list`): x0, y0, x1, y1 of each in pixels of `image`, the largest first.
        chosen (`int`): The one that was cropped.
        image (`PIL.Image.Image`): The image with numbered boxes, landmarks and the outline of the crop.
        crop (`PIL.Image.Image`): Input of the model.
    """

    boxes: list[tuple[float, float, float, float]]
    chosen: int
    image: Image.Image
    crop: Image.Image


def find_nearest(boxes: Sequence[Sequence[float]], x: float, y: float) -> int:
    """Index of the box x0, y0, x1, y1 whose center is nearest to a point of the image."""
    distances = [((x0 + x1) / 2 - x) ** 2 + ((y0 + y1) / 2 - y) ** 2 for x0, y0, x1, y1 in boxes]
    return distances.index(min(distances))


def find_faces(models: Models, path: str, face: int | None = None) -> FoundFaces:
    """Find the faces of an image, and crop one as `make_talk` would.

    Args:
        models (`Models`): The pipelines.
        path (`str`): The image file.
        face (`int`, *optional*): Which to crop; the largest by default.

    Raises:
        ValueError: If the image cannot be read, or shows no face that can be animated.
    """
    pipe = models.faces
    digest(path)
    processor = pipe.image_processor
    image = processor.load(path)
    faces = pipe.face_analyzer.detect(image)
    if face is not None and face >= len(faces):
        face = None
    found = processor.choose(faces, tuple(image.shape[-2:]), face)
    crop = processor.crop(image, found, None, size=pipe.face_autoencoder.config.image_size)
    labels = [str(index + 1) for index in range(len(faces))]
    boxes = [tuple(one.box.tolist()) for one in faces]
    return FoundFaces(boxes, face or 0, processor.preview(image, faces, crop, labels), processor.preview(crop.image))


def make_talk(
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
        models (`Models`): The pipelines.
        job (`Job`): For the files.
        image (`str`): Portrait file.
        audio (`str`): Voice file.
        settings (`TalkSettings`): Settings.
        face (`int`, *optional*): Which face of the image; 0 is the largest.
        max_seconds (`float`, defaults to 120): Longest voice.

    Yields:
        `Update`: segments of the video; at the end `files` with `video` and `settings`.

    Raises:
        ValueError: If an argument cannot be used.
        Stopped: If the job was stopped.
    """
    yield Update(PREPARING)
    pipe = models.faces
    samples, rate = models.sound(audio, max_seconds)
    portrait = models.portrait(image, face, settings.size)
    inputs = {"image": image, "audio": audio}
    yield from make_video(
        job, pipe, portrait, (samples, rate), settings, inputs, {"face": face}, paste_back=settings.paste_back
    )


def drive_portrait(
    models: Models,
    job: Job,
    image: str,
    video: str,
    settings: TalkSettings,
    face: int | None = None,
    relative: bool = True,
    max_seconds: float = 60.0,
) -> Iterator[Update]:
    """Move a portrait as the face of a video; the arguments and updates are those of `make_talk`.

    `relative` adds the driver's change to the portrait's own pose and expression.
    """
    yield Update(PREPARING)
    pipe, began = models.faces, time.monotonic()
    reader = VideoReader(video, max_seconds=max_seconds)
    expected = reader.num_frames or 0
    check_seconds(expected / float(reader.fps), max_seconds, "driving_video")
    portrait = models.portrait(image, face, settings.size)

    def encode(report: Any) -> Any:
        def read_frames() -> Iterator[np.ndarray]:
            for index, frame in enumerate(reader):
                report(index)
                yield frame

        return pipe.follow_video(portrait, read_frames(), relative=relative, num_frames=expected)[0]

    pace, messages = Pace(), run_in_thread(job, encode)
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
    yield from write_video(job, frames, motion.shape[1], fps, sound, target, pipe.model_name)
    used = {"size": settings.size, "fps": str(fps), "paste_back": settings.paste_back, "relative": relative}
    inputs = {"image": image, "driving_video": video}
    file = save_settings(job.folder / "settings.json", pipe.model_name, inputs, used, began)
    yield Update("Done", motion.shape[1], motion.shape[1], 0.0, files={"video": target, "settings": file})


# --- page -------------------------------------------------------------------------------------------------------------


def build_portrait(height: int) -> gr.Image:
    """Field of a portrait."""
    sources = ["upload", "webcam", "clipboard"]
    return gr.Image(label="Portrait", type="filepath", sources=sources, height=height, elem_classes="portrait")


def build_voice(value: str | None = None) -> gr.Audio:
    """Field of a voice."""
    sources = ["upload", "microphone"]
    return gr.Audio(value, label="Voice", type="filepath", sources=sources, elem_classes="voice")


def build_talk_tab(handler: RequestHandler, consent: gr.Checkbox) -> tuple[gr.Image, gr.Audio]:
    """Build the tab; returns the fields of the portrait and the voice."""
    with gr.Row():
        with gr.Column(min_width=280) as left:
            image = build_portrait(280)
            faces = _FacePicker(handler, consent, image)
        with gr.Column(min_width=280):
            system = gr.Radio(
                [VASA1, GAIA],
                value=VASA1,
                label="System",
                info="GAIA has its own controls, in the tab GAIA: those below are VASA-1's",
                visible=handler.about["gaia"],
                elem_id="system",
            )
            source = gr.Radio([VOICE, VIDEO], value=VOICE, label="Driven by")
            with gr.Column() as voice_group:
                audio = build_voice()
                _build_speech(handler, audio)
            # 320: with less, the lower part of the drop zone is cut off.
            video = gr.Video(
                label="Driving video", visible=False, sources=["upload", "webcam"], height=320, elem_classes="driving"
            )
            controls = build_controls(handler.about["emotions"], handler.about["sizes"])
        with gr.Column(min_width=280):
            job = VideoJob(handler, "Make it talk", "Talking face", "talk")
    with left:
        gr.Examples([[EXAMPLE_FACE, EXAMPLE_VOICE]], [image, audio], label="Example", **PRIVATE)

    def show_source(source: str) -> tuple:
        return gr.update(visible=source == VOICE), gr.update(visible=source == VIDEO)

    def talk(
        session: str,
        agreed: bool,
        system: str,
        source: str,
        image: Any,
        audio: Any,
        video: Any,
        face: Any,
        *values: Any,
    ) -> Iterator[Update]:
        handler.check_consent(agreed)
        image, settings = require(image, "a portrait", "portrait"), TalkSettings(*values)
        if system == GAIA:
            own = GaiaSettings(seed=settings.seed, fps=settings.fps, paste_back=settings.paste_back)
            if source == VIDEO:
                raise ValueError(
                    "A driving video moves VASA-1 here: choose the voice, or the tab GAIA for its controls."
                )
            voice = require(audio, VOICE, "voice")
            return handler.stream(make_gaia_video, session, agreed, image, voice, own, None, None, face)
        if source == VIDEO:
            video = require(video, VIDEO, "driving")
            return handler.stream(drive_portrait, session, agreed, image, video, settings, face)
        return handler.stream(make_talk, session, agreed, image, require(audio, VOICE, "voice"), settings, face)

    def talk_api(request: gr.Request, consent, image, audio, face, *settings) -> Any:
        """Make a portrait speak with the voice of an audio file; returns the video and its settings (JSON)."""
        for update in talk(session_name(request), consent, VASA1, VOICE, image, audio, None, face, *settings):
            if update.files:
                yield str(update.files["video"]), str(update.files["settings"])

    source.change(show_source, source, [voice_group, video], queue=False, **PRIVATE)
    job.connect_video(talk, [consent, system, source, image, audio, video, faces.choice, *controls], "talk_live")
    # For programs: the list of faces on the page has only those that were found.
    number = gr.Number(0, visible=False, precision=0, label="Face")
    texts = [", ".join(filter(None, (one.label, getattr(one, "info", None)))) for one in controls]
    fields = FIELDS | dict(zip(TalkSettings.__dataclass_fields__, texts, strict=True))
    made = [gr.Video(visible=False), gr.File(visible=False)]
    add_api(talk_api, "talk", [consent, image, audio, number, *controls], made, fields, concurrency_limit=None)
    return image, audio


class _FacePicker:
    """Faces of the portrait, with numbers; a click on a face or the list picks one.

    Args:
        handler (`RequestHandler`): Finds them.
        consent (`gr.Checkbox`): Nothing is looked for without it.
        image (`gr.Image`): The portrait.
    """

    def __init__(self, handler: RequestHandler, consent: gr.Checkbox, image: gr.Image):
        self.handler = handler
        self.note, boxes = gr.Markdown(elem_classes="note"), gr.State()
        with gr.Column(visible=False) as group:
            seen = gr.Image(label="Faces", interactive=False, height=240, buttons=[])
            crop = gr.Image(label="Input of the model", interactive=False, height=200, buttons=[])
            self.choice = gr.Radio([], label="Face to animate")
        outputs = [group, seen, crop, self.choice, self.note, boxes]
        options = {"outputs": outputs, **LAST, **PRIVATE}
        gr.on([image.change, consent.change], self.show, [consent, image], **options)
        self.choice.input(self.show, [consent, image, self.choice], **options)
        seen.select(self.pick, [consent, image, boxes], **options)
        add_api(self.find, "faces", [consent, image], outputs, FIELDS)

    def find(self, consent, image, face=None) -> tuple:
        """Find the faces of an image: the image with boxes, the crop of one, and the list of faces."""
        if not image or (self.handler.need_consent and not consent):
            text = "Tick the consent box at the top to see the faces." if image else ""
            return gr.update(visible=False), None, None, gr.update(choices=[], value=None), text, None
        found = run_short(find_faces, image, face)
        count = len(found.boxes)
        choices = [(f"{index + 1}" + (" (largest)" if index == 0 else ""), index) for index in range(count)]
        text = "One face found." if count == 1 else f"{count} faces found. Click the one to animate."
        picker = gr.update(choices=choices, value=found.chosen, visible=count > 1)
        return gr.update(visible=True), found.image, found.crop, picker, text, found.boxes

    def show(self, consent: bool, image: str | None, face: int | None = None) -> tuple:
        """As `find`, with an error as the note below the portrait."""
        try:
            return self.find(consent, image, face)
        except Exception as error:
            text = f"Error: {explain_error(error)}"
            return gr.update(visible=False), None, None, gr.update(choices=[], value=None), text, None

    def pick(self, consent: bool, image: str | None, boxes: Any, event: gr.SelectData) -> tuple:
        """Choose the face that was clicked."""
        return self.show(consent, image, find_nearest(boxes, *event.index) if boxes else None)


def _build_speech(handler: RequestHandler, audio: gr.Audio) -> None:
    """Typed text as a voice."""

    def say(request: gr.Request, text, voice) -> str:
        """Turn text into a voice; returns an audio file."""
        return str(speak(text, handler.jobs.kept(session_name(request)), voice))

    def say_on_page(request: gr.Request, text: str, voice: str) -> tuple:
        try:
            return say(request, text, voice), ""
        except Exception as error:
            return gr.skip(), f"Error: {explain_error(error)}"

    with gr.Accordion("Type what to say", open=False):
        note = gr.Markdown("" if can_speak() else INSTALL, elem_classes="note")
        with gr.Column(visible=can_speak()):
            text = gr.Textbox(label="Text", lines=3, max_length=2000)
            voice = gr.Dropdown(list(VOICES), label="Speaker", value=next(iter(VOICES)))
            gr.Button("Speak", size="sm").click(say_on_page, [text, voice], [audio, note], **PRIVATE)
    add_api(say, "speak", [text, voice], audio)
