"""Tab 3D: avatars that are fitted to a portrait, turned, made to talk, and exported."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from vasa_hf.demo.handler import MINE, RequestHandler, explain_error, require, run_short
from vasa_hf.demo.jobs import Job, Pace, Update, run_in_thread
from vasa_hf.demo.models import Models
from vasa_hf.demo.settings import BACKGROUNDS, TalkSettings, build_controls
from vasa_hf.demo.talk import EXAMPLE_VOICE, build_portrait, build_voice
from vasa_hf.demo.video import PREPARING, make_video
from vasa_hf.demo.widgets import LAST, PRIVATE, JobControls, VideoJob, add_api, session_name

FIT_MINUTES = (3, 15, 6)  # least, most, default
ENOUGH_STEPS = 300  # after 100 the teeth and irises of the package's portrait are blurred, after 290 soft
FIT_STAGES = {
    "start": "Mesh and colors",
    "motion": "Making motion for training",
    "frames": "Making frames for training",
    "fit": "Fitting",
    "sharpen": "Sharpening",
}


def fit_avatar(
    models: Models, job: Job, image: str, target: Path, minutes: float = 6.0, face: int | None = None
) -> Iterator[Update]:
    """Fit an avatar to a portrait.

    Args:
        models (`Models`): The pipelines.
        job (`Job`): For the files.
        image (`str`): Portrait file.
        target (`Path`): Folder of the avatar; an avatar that is there is replaced.
        minutes (`float`, defaults to 6.0): Wall-clock time.
        face (`int`, *optional*): Which face of the image.

    Yields:
        `Update`: with previews (target, mesh alone, all, both sides); at the end `files` with `avatar`.

    Raises:
        ValueError: If the image shows no face that an avatar can be fitted to.
        Stopped: If the job was stopped.
    """
    if not 0.1 <= minutes <= 60:
        raise ValueError(f"`minutes` must lie in [0.1, 60], got {minutes!r}.")
    yield Update(PREPARING)
    pipe, folder = models.avatars, job.folder / "avatar"
    pace = Pace()

    def work(report: Any) -> Any:
        changes = {"max_minutes": float(minutes), "preview_every": 50}
        return pipe.fit(image, preset="fast", output=folder, face=face, on_progress=report, **changes)

    steps = 0
    for progress in run_in_thread(job, work):
        if progress is None:
            continue
        steps = max(steps, progress.done) if progress.stage == "fit" else steps
        stage = FIT_STAGES.get(progress.stage, progress.stage)
        left = pace.left(stage, progress.done, progress.total)
        yield Update(stage, progress.done, progress.total, left, preview=progress.preview)
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder, target)
    hasty = f", but after only {steps} steps: the mouth may be blurred. Fit again with more minutes."
    yield Update("Done" + (hasty if steps < ENOUGH_STEPS else ""), files={"avatar": target})


def render_avatar(
    models: Models,
    avatar: str,
    azimuth_deg: float = 0.0,
    elevation_deg: float = 0.0,
    size: int = 384,
    background: str = "white",
) -> Image.Image:
    """Render an avatar from one side.

    Args:
        models (`Models`): The pipelines.
        avatar (`str`): Name or folder.
        azimuth_deg (`float`): > 0 from the right of the image.
        elevation_deg (`float`): > 0 from above.
        size (`int`, defaults to 384): Side of the image in pixels.
        background (`str`): A key of `BACKGROUNDS`.
    """
    options = {"elevation_deg": float(elevation_deg), "output_size": size, "background": BACKGROUNDS[background]}
    return models.avatars.contact_sheet(avatar, (float(azimuth_deg),), **options)


@dataclass(frozen=True)
class Exported:
    """Files of an avatar's Gaussians, in the pose of its portrait.

    Args:
        ply, splat (`Path`): For programs that read 3DGS, and for web viewers.
        camera (`dict`): See `viewer_camera`.
    """

    ply: Path
    splat: Path
    camera: dict[str, Any]


def export_avatar(models: Models, avatar: str, folder: Path) -> Exported:
    """Write an avatar's Gaussians.

    Args:
        models (`Models`): The pipelines.
        avatar (`str`): Name or folder.
        folder (`Path`): For the files.
    """
    pipe = models.avatars
    loaded = pipe.load_avatar(avatar)
    files = []
    for suffix in (".ply", ".splat"):
        written = pipe.export_sequence(loaded, loaded.own_motion[None], folder / f"export{suffix}", suffix)
        files.append(Path(shutil.move(written[0], folder / f"avatar{suffix}")))
    return Exported(*files, viewer_camera(pipe.view(loaded).camera))


def make_avatar_talk(
    models: Models,
    job: Job,
    avatar: str,
    audio: str,
    settings: TalkSettings,
    camera: str = "fixed",
    background: str = "white",
    max_seconds: float = 120.0,
) -> Iterator[Update]:
    """Make an avatar talk; the updates are those of `make_talk`.

    Args:
        models (`Models`): The pipelines.
        job (`Job`): For the files.
        avatar (`str`): Name or folder.
        audio (`str`): Voice file.
        settings (`TalkSettings`): Settings.
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
    yield from make_video(job, pipe, view, (samples, rate), settings, {"audio": audio}, more)


# --- page -------------------------------------------------------------------------------------------------------------


def viewer_parts() -> dict[str, str]:
    """HTML, style and script of the viewer, as Gradio's HTML component names them."""
    parts = {"html_template": ".html", "css_template": ".css", "js_on_load": ".js"}
    viewer = Path(__file__).with_name("splat_viewer")
    return {name: viewer.with_suffix(suffix).read_text(encoding="utf-8") for name, suffix in parts.items()}


def viewer_camera(camera: Any) -> dict[str, Any]:
    """The portrait's camera and the point that it orbits, for `splat_viewer.js`.

    Args:
        camera (`CameraPath`): Of an avatar's view.

    Returns:
        `dict`: `center`, the point in the world; `seen`, the same in the camera's frame; `focal`, a fraction of the
            image height.
    """
    matrix = camera.portrait.camera_from_world[0]
    seen = matrix[:3, :3] @ camera.center + matrix[:3, 3]
    return {"center": camera.center.tolist(), "seen": seen.tolist(), "focal": float(camera.portrait.focal[0, 1])}


def show_fit(update: Update) -> tuple:
    """Preview and chosen avatar for an update of `fit_avatar`; the last preview stays."""
    image = gr.update(value=str(update.preview), visible=True) if update.preview else gr.skip()
    return image, gr.update(value=MINE) if update.files else gr.skip()


def build_avatar_tab(handler: RequestHandler, consent: gr.Checkbox, tab: gr.Tab) -> None:
    """Build the tab."""
    avatars = handler.about["avatars"]
    choices = [*avatars, MINE]
    with gr.Row():
        with gr.Column(min_width=280):
            name = gr.Dropdown(choices, value=choices[0], label="Avatar", elem_classes="avatar")
            with gr.Accordion("Fit an avatar to a portrait", open=not avatars):
                image = build_portrait(240)
                minutes = gr.Slider(*FIT_MINUTES, step=1, label="Minutes", info="more: sharper, above all the mouth")
                fit_job = JobControls(handler, "Fit")
                preview = gr.Image(
                    label="Preview: target, mesh alone, all, both sides",
                    interactive=False,
                    visible=False,
                    elem_id="fit-preview",
                )
            splat = gr.HTML(**viewer_parts())
        with gr.Column(min_width=280):
            audio = build_voice(EXAMPLE_VOICE)
            camera = gr.Radio(["fixed", "orbit"], value="fixed", label="Camera")
            background = gr.Dropdown(list(BACKGROUNDS), label="Background")
            controls = build_controls(handler.about["emotions"], handler.about["sizes"])
            job = VideoJob(handler, "Make the avatar talk", "Talking avatar", "talk3d")
        with gr.Column(min_width=280):
            view = gr.Image(label="View from this side", interactive=False, height=300, buttons=["download"])
            azimuth = gr.Slider(-90, 90, 0, step=5, label="Turn (degrees)")
            elevation = gr.Slider(-30, 30, 0, step=5, label="From above (degrees)")
            note = gr.Markdown(elem_classes="note")
            export = gr.Button("Export the Gaussians")
            files = gr.File(label="Download: .ply and .splat", file_count="multiple", interactive=False, visible=False)

    hidden = gr.update(value=None, visible=False)

    def fit(session: str, agreed: bool, image: str | None, minutes: float) -> Iterator[Update]:
        handler.check_consent(agreed)
        target = handler.jobs.kept(session) / "avatar"
        return handler.stream(fit_avatar, session, agreed, require(image, "a portrait", "portrait"), target, minutes)

    def talk(session: str, agreed: bool, name: str, audio: str | None, camera: str, background: str, *values: Any):
        handler.check_consent(agreed)
        avatar, settings = handler.avatar_path(session, name), TalkSettings(*values)
        audio = require(audio, "a voice", "voice")
        return handler.stream(make_avatar_talk, session, agreed, avatar, audio, settings, camera, background)

    def look(request: gr.Request, name, azimuth, elevation, background) -> Any:
        """Image of an avatar from one side."""
        avatar = handler.avatar_path(session_name(request), name)
        return run_short(render_avatar, avatar, azimuth, elevation, 384, background)

    def write_files(request: gr.Request, name: str) -> Iterator[Exported]:
        session = session_name(request)
        with handler.jobs.open(session) as made:  # until Gradio has copied the files
            yield run_short(export_avatar, handler.avatar_path(session, name), made.folder)

    def export_api(request: gr.Request, name) -> Any:
        """Write the Gaussians of an avatar, by its name, as `.ply` (3DGS) and `.splat` (web viewers)."""
        for made in write_files(request, name):
            yield [str(made.ply), str(made.splat)]

    def look_on_page(request: gr.Request, *side: Any) -> tuple:
        try:
            return look(request, *side), ""
        except Exception as error:
            return None, f"Error: {explain_error(error)}"

    def export_on_page(request: gr.Request, name: str) -> Iterator[tuple]:
        try:
            for made in export_api(request, name):
                yield gr.update(value=made, visible=True), ""
        except Exception as error:
            yield hidden, f"Error: {explain_error(error)}"

    def show(request: gr.Request, name: str, *side: Any) -> Iterator[tuple]:
        try:
            yield look(request, name, *side), gr.skip(), ""
            for made in write_files(request, name):
                file = {"path": str(made.splat), "meta": {"_type": "gradio.FileData"}}
                yield gr.skip(), {"splat": file, "name": name, **made.camera}, ""
        except Exception as error:
            yield None, gr.skip(), f"Error: {explain_error(error)}"

    def show_first(request: gr.Request, shown: Any, name: str, *side: Any) -> Iterator[tuple]:
        if not shown and name in avatars:
            yield from show(request, name, *side)

    def show_own(request: gr.Request, name: str, *side: Any) -> Iterator[tuple]:
        if name == MINE:
            yield from show(request, name, *side)

    def clear_fit(begins: bool) -> tuple:
        return gr.update(value=None, visible=False), gr.skip()

    job.connect_video(talk, [consent, name, audio, camera, background, *controls], "talk3d_live")
    fitted = fit_job.connect(fit, [consent, image, minutes], [preview, name], show_fit, clear_fit, "fit")
    side = [name, azimuth, elevation, background]
    gr.on([azimuth.input, elevation.input, background.input], look_on_page, side, [view, note], **LAST, **PRIVATE)
    export.click(export_on_page, name, [files, note], **PRIVATE)
    add_api(look, "look", side, view)
    add_api(export_api, "export", name, gr.File(visible=False, file_count="multiple"))
    shown = {"outputs": [view, splat, note], **LAST, **PRIVATE}
    name.change(show, side, **shown)
    fitted.then(show_own, side, **shown)  # the name does not change when an avatar is fitted again
    tab.select(show_first, [splat, *side], **shown)
    for event in (name.change, fitted.then):  # exported files are of another avatar
        event(lambda: hidden, None, files, queue=False, **PRIVATE)
