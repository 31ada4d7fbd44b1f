"""The page: wires `vasa_hf.studio` to Gradio. `python app.py`, `vasa-hf app`, or as a Space; `--help` tells flags."""

from __future__ import annotations

import argparse
import functools
import inspect
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import gradio as gr

import vasa_hf
from vasa_hf.cli.app import add_options
from vasa_hf.cli.options import find_device
from vasa_hf.studio import about, faces
from vasa_hf.studio.desk import MINE, POSES, VIDEO, VOICE, Desk, message, status
from vasa_hf.studio.jobs import Update, share_one_heap
from vasa_hf.studio.models import SYSTEMS
from vasa_hf.studio.programs import FIELDS, check_mcp, file_paths, is_inside, named
from vasa_hf.studio.settings import BACKGROUNDS, TalkSettings, control_groups
from vasa_hf.studio.speech import VOICES, can_speak
from vasa_hf.studio.splat_viewer import viewer_parts

try:  # a Space with ZeroGPU: the device is there only inside such functions
    from spaces import GPU
except ImportError:
    GPU = lambda **_: lambda function: function  # noqa: E731

ASSETS = Path(vasa_hf.__file__).parent / "assets"
FACE, SPEECH = str(ASSETS / "portrait.jpg"), str(ASSETS / "voice.flac")
CSS = """
.status {min-height: 3em} .status progress {width: 100%; height: 10px; accent-color: var(--color-accent)}
@media (max-width: 640px) {.gradio-container {padding: 6px !important}}
"""
# Of several changes in a row, or while the models load, the last must be answered.
LAST = {"show_progress": "minimal", "trigger_mode": "always_last"}
ONE_AT_A_TIME = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "hidden"}
# Fonts of the device: a page that runs offline must not ask for others.
THEME = gr.themes.Default(primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["monospace"])
SETTINGS = tuple(TalkSettings.__dataclass_fields__)
DESK: Desk


@GPU(duration=120)
def long_work(*arguments: Any) -> Any:
    """Yield the updates of a job."""
    yield from DESK.do_long(*arguments)


@GPU(duration=20)
def short_work(*arguments: Any) -> Any:
    """Return the result of something quick."""
    return DESK.do_short(*arguments)


async def hand_on(value: Any, output_id: str, first_chunk: bool) -> tuple:
    """Stream `Segment`s as they are: Gradio's own way encodes each one's sound anew, and needs ffprobe for it."""
    file = {"path": output_id, "is_stream": True, "orig_name": "live.mp4", "meta": {"_type": "gradio.FileData"}}
    if not value:
        return None, file
    data = b"".join(segment.path.read_bytes() for segment in value)
    return {"data": data, "duration": sum(segment.seconds for segment in value), "extension": ".ts"}, file


async def hold_nothing_back(output_id: str) -> None:
    """At a stream's end nothing is left."""


class Page(gr.Blocks):
    """A page that opens only files which were sent to it, whatever field they come through."""

    async def preprocess_data(self, block_fn: Any, inputs: list, *arguments: Any, **options: Any) -> Any:
        """As Gradio's, which looks only at files that name their type."""
        for path in file_paths(inputs):
            if not is_inside(path, gr.utils.get_upload_folder()):
                raise gr.Error("Please upload this file first.", title="That did not work", print_exception=False)
        return await super().preprocess_data(block_fn, inputs, *arguments, **options)


def portrait_field(height: int) -> gr.Image:
    """A picture's file as it was sent: it is decoded, and complained about, by the package."""
    return gr.Image(label="Portrait", type="filepath", sources=["upload", "webcam", "clipboard"], height=height)


# Of the class: Gradio makes a field anew, and what was set on the first one is lost, when an example fills it.
gr.Image.preprocess = lambda field, payload: payload and payload.path


def readable(function: Any) -> Any:
    """Show what is wrong with the input as a message, instead of "Error"."""

    def shown(error: Exception) -> gr.Error:
        known = isinstance(error, (ValueError, ImportError))
        text = message(error) if known else "The server has made a mistake; its log says which."
        return gr.Error(text, title="That did not work", duration=20, print_exception=not known)

    @functools.wraps(function)
    def generator(*arguments: Any) -> Any:
        try:
            yield from function(*arguments)
        except Exception as error:
            raise shown(error) from error

    @functools.wraps(function)
    def plain(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            raise shown(error) from error

    return generator if inspect.isgeneratorfunction(function) else plain


def user(request: gr.Request) -> str:
    """Name of who asks."""
    return request.session_hash or "api"


def video_page(kind: str) -> Any:
    """Handler of a button that makes a video: yields status, pieces to play, video and files."""

    def page(request: gr.Request, *arguments: Any) -> Any:
        for update in getattr(DESK, kind)(user(request), *arguments):
            files = [str(file) for file in update.files.values()]
            done = (gr.update(value=files[0], visible=True), gr.update(value=files, visible=True)) if files else ()
            yield status(update), update.segments or gr.skip(), *(done or (gr.skip(), gr.skip()))

    return readable(page)


@readable
def talk_api(request: gr.Request, consent, image, audio, face, *settings) -> Any:
    """Make a video of a portrait that says what is heard in a sound file; returns the video and its settings (JSON)."""
    for update in DESK.talk(user(request), consent, image, VOICE, audio, None, face, *settings):
        files = update.files
        if files:
            yield str(files["video"]), str(files["settings"])


@readable
def show_faces(consent, image, face=None) -> tuple:
    """Find the faces of a picture: the picture with boxes, the square that is cut out, and which faces there are."""
    found = DESK.faces(consent, image, face)
    if found is None:
        text = "Tick the box at the top to see the faces." if image else ""
        return gr.update(visible=False), None, None, gr.update(choices=[], value=None), text, None
    choices = [(name, index) for index, name in enumerate(found.names)]
    text = "One face found." if len(choices) == 1 else f"{len(choices)} faces found: click on the one to animate."
    picker = gr.update(choices=choices, value=found.chosen, visible=len(choices) > 1)
    return gr.update(visible=True), found.picture, found.crop, picker, text, found.boxes


def pick_face(consent, image, boxes, event: gr.SelectData) -> tuple:
    """The face that was clicked on."""
    return show_faces(consent, image, faces.nearest(boxes, *event.index) if boxes else None)


@readable
def fit_page(request: gr.Request, consent, image, minutes) -> Any:
    """Yield status and preview while an avatar is fitted; at the end it is the chosen one."""
    preview = None
    for update in DESK.fit(user(request), consent, image, minutes):
        new, preview = update.preview != preview, update.preview
        yield status(update), str(preview) if new else gr.skip(), gr.update(value=MINE) if update.files else gr.skip()


@readable
def look_page(request: gr.Request, name, azimuth, elevation, background) -> Any:
    """A picture of an avatar from one side."""
    return DESK.look(user(request), name, azimuth, elevation, background)


@readable
def export_page(request: gr.Request, name) -> Any:
    """Write the Gaussians of an avatar, by its name, as `.ply` (3DGS) and `.splat` (web viewers)."""
    for made in DESK.export(user(request), name):
        yield [str(made.ply), str(made.splat)]


@readable
def show_page(request: gr.Request, name, *side) -> Any:
    """Yield an avatar's picture from one side, then what the page's viewer turns."""
    yield DESK.look(user(request), name, *side), gr.skip()
    for made in DESK.export(user(request), name):
        file = {"path": str(made.splat), "meta": {"_type": "gradio.FileData"}}
        yield gr.skip(), {"splat": file, "name": name, **made.camera}


def first_look(request: gr.Request, shown, name, *side) -> Any:
    """Show the chosen avatar when its tab is opened, if there is one and it is not shown yet."""
    if not shown and name in DESK.about["avatars"]:
        yield from show_page(request, name, *side)


@readable
def swaps_page(request: gr.Request, consent, image, others, audio, seed) -> Any:
    """Yield status and the sheet of exchanged poses and dynamics."""
    for update in DESK.swaps(user(request), consent, image, others, audio, seed):
        yield status(update), str(update.files["sheet"]) if update.files else gr.skip()


@readable
def shape_page(consent, image, *amounts) -> Any:
    """A portrait moved along the latent's named directions."""
    return DESK.shape(consent, image, *amounts)


@readable
def say(request: gr.Request, text, voice) -> str:
    """Typed text as a sound file."""
    return DESK.say(user(request), text, voice)


def stop_job(request: gr.Request) -> str:
    """End what runs for this user, or waits."""
    DESK.jobs.stop(user(request))
    return status(Update("Stopped. Nothing was kept."))


def leave(request: gr.Request) -> None:
    """Remove what a user had who closed the page."""
    DESK.jobs.forget(user(request))


def settings_controls() -> list:
    """The fields of `TalkSettings`, in their order."""
    made = []
    for group, controls in control_groups(DESK.about["emotions"], DESK.about["sizes"]).items():
        with gr.Accordion(group, open=False), gr.Row():
            made += [getattr(gr, kind)(**options) for kind, options in controls]
    return made


def results(label: str) -> list:
    """Status, what plays while it is made, the whole video, and its files."""
    state = gr.HTML(status(Update("Ready.")))
    live = gr.Video(streaming=True, autoplay=True, label=f"{label}, while it is made", height=320, interactive=False)
    live.stream_output, live.flush_stream_output = hand_on, hold_nothing_back
    video = gr.Video(label=label, visible=False, height=320, interactive=False)
    files = gr.File(label="Download: video and settings", visible=False, file_count="multiple", interactive=False)
    return [state, live, video, files]


def start_and_stop(text: str) -> tuple:
    """Two buttons."""
    with gr.Row(equal_height=True):
        return gr.Button(text, variant="primary", scale=2), gr.Button("Stop", variant="stop", min_width=80)


def begin(buttons: tuple, page: Any, inputs: list, outputs: list, name: str) -> Any:
    """Let one button start a job, and the other stop it."""
    event = buttons[0].click(page, inputs, outputs, api_name=name, api_visibility="undocumented", **ONE_AT_A_TIME)
    buttons[1].click(stop_job, None, outputs[0], cancels=[event], queue=False, api_visibility="private")
    return event


def talk_tab(consent: Any) -> tuple:
    """One portrait and one voice, or a driving video."""
    boxes = gr.State()
    with gr.Row():
        with gr.Column(min_width=280):
            image = portrait_field(280)
            note = gr.Markdown()
            with gr.Column(visible=False) as found_faces:
                seen = gr.Image(label="Faces", interactive=False, height=240, buttons=[])
                crop = gr.Image(label="What the model sees", interactive=False, height=200, buttons=[])
                face = gr.Radio([], label="Face to animate")
        with gr.Column(min_width=280):
            by = gr.Radio([VOICE, VIDEO], value=VOICE, label="What moves it")
            with gr.Column() as voice_group:
                audio = gr.Audio(label="Voice", type="filepath", sources=["upload", "microphone"])
                with gr.Accordion("Type what to say", open=False, visible=can_speak()):
                    text = gr.Textbox(label="Text", lines=3, max_length=2000)
                    voice = gr.Dropdown(list(VOICES), label="Speaker", value=next(iter(VOICES)))
                    speak = gr.Button("Speak it", size="sm")
            video = gr.Video(label="Driving video", visible=False, sources=["upload", "webcam"], height=240)
            gr.Examples([[FACE, SPEECH]], [image, audio], label="Example", api_visibility="private")
            controls = settings_controls()
        with gr.Column(min_width=280):
            pair = start_and_stop("Make it talk")
            outputs = results("Talking face")
    inputs = [consent, image, by, audio, video, face, *controls]
    begin(pair, video_page("talk"), inputs, outputs, "talk_live")
    found = {"outputs": [found_faces, seen, crop, face, note, boxes], **LAST}
    gr.on(
        [image.change, consent.change], named(show_faces, "faces", FIELDS), [consent, image], api_name="faces", **found
    )
    face.input(show_faces, [consent, image, face], api_visibility="private", **found)
    seen.select(pick_face, [consent, image, boxes], api_visibility="private", **found)
    speak.click(named(say, "speak"), [text, voice], audio, api_name="speak")
    swap = lambda kind: (gr.update(visible=kind == VOICE), gr.update(visible=kind == VIDEO))  # noqa: E731
    by.change(swap, by, [voice_group, video], queue=False, api_visibility="private")
    # Programs: their field of the face has no list of those that were seen.
    api = [gr.Button(visible=False), gr.Number(0, visible=False, precision=0, label="Face")]
    made = [gr.Video(visible=False), gr.File(visible=False)]
    texts = [", ".join(filter(None, (one.label, getattr(one, "info", None)))) for one in controls]
    meaning = FIELDS | dict(zip(SETTINGS, texts, strict=True))
    given = [consent, image, audio, api[1], *controls]
    api[0].click(named(talk_api, "talk", meaning), given, made, api_name="talk", **ONE_AT_A_TIME)
    return image, audio


def avatar_tab(consent: Any, tab: Any) -> None:
    """A portrait to a 3D avatar; it is turned, talks, and is taken away."""
    choices, have = [*DESK.about["avatars"], MINE], DESK.about["avatars"]
    with gr.Row():
        with gr.Column(min_width=280):
            name = gr.Dropdown(choices, value=choices[0], label="Avatar")
            with gr.Accordion("Fit one to a portrait", open=not have):
                image = portrait_field(240)
                minutes = gr.Slider(0.5, 15, 6, step=0.5, label="Minutes", info="longer: sharper")
                fit_pair = start_and_stop("Fit")
                fit_outputs = [gr.HTML(status(Update("Ready.")))]
                fit_outputs += [gr.Image(label="Preview: target, mesh alone, all, both sides", interactive=False)]
            splat = gr.HTML(**viewer_parts())
        with gr.Column(min_width=280):
            audio = gr.Audio(SPEECH, label="Voice", type="filepath", sources=["upload", "microphone"])
            camera = gr.Radio(["fixed", "orbit"], value="fixed", label="Camera")
            background = gr.Dropdown(list(BACKGROUNDS), label="Background")
            controls = settings_controls()
            pair = start_and_stop("Make the avatar talk")
            outputs = results("Talking avatar")
        with gr.Column(min_width=280):
            view = gr.Image(label="From this side", interactive=False, height=300, buttons=["download"])
            azimuth = gr.Slider(-90, 90, 0, step=5, label="Turn (degrees)")
            elevation = gr.Slider(-30, 30, 0, step=5, label="From above (degrees)")
            export = gr.Button("Export its Gaussians")
            files = gr.File(label="Download: .ply and .splat", file_count="multiple", interactive=False, height=140)
    begin(pair, video_page("talk3d"), [consent, name, audio, camera, background, *controls], outputs, "talk3d_live")
    fitted = begin(fit_pair, fit_page, [consent, image, minutes], [*fit_outputs, name], "fit")
    side = [name, azimuth, elevation, background]
    turn = [azimuth.release, elevation.release, background.input]
    gr.on(turn, named(look_page, "look"), side, view, api_name="look", **LAST)
    export.click(named(export_page, "export"), name, files, api_name="export")
    shown = {"outputs": [view, splat], **LAST, "api_visibility": "private"}
    name.change(show_page, side, **shown)
    fitted.success(show_page, side, **shown)
    for other in (name.change, fitted.success):  # the files that may be there are another's
        other(lambda: None, None, files, queue=False, api_visibility="private")
    tab.select(first_look, [splat, *side], **shown)


def inside_tabs(consent: Any, image: Any, audio: Any) -> None:
    """The systems beside each other, and what the latent means."""
    with gr.Tab("Compare"):
        gr.Markdown("One portrait and one voice. VASA-1 and VASA-3D make the same motion, MoDA its own.")
        with gr.Row():
            name = gr.Dropdown([*DESK.about["avatars"], MINE], label="Avatar")
            camera = gr.Radio(["fixed", "orbit"], value="fixed", label="Camera of VASA-3D")
            seed = gr.Number(1, precision=0, label="Seed")
            systems = gr.CheckboxGroup(list(SYSTEMS), value=list(SYSTEMS), label="Systems")
        voice = gr.Audio(SPEECH, label="Voice", type="filepath", sources=["upload", "microphone"])
        pair, outputs = start_and_stop("Compare"), results("Beside each other")
        begin(pair, video_page("compare"), [consent, name, voice, camera, seed, systems], outputs, "compare_live")
    with gr.Tab("Inspect"):
        gr.Markdown("The portrait and the voice are those of the first tab.")
        with gr.Row():
            with gr.Column(min_width=280):
                picture = gr.Image(label="Moved along named directions", interactive=False, height=300)
                sliders = [gr.Slider(-40, 40, 0, step=1, label=f"pose: {one}", min_width=140) for one in POSES]
                with gr.Row():
                    sliders += [
                        gr.Slider(-2, 2, 0, step=0.1, label=one, min_width=220) for one in DESK.about["sliders"]
                    ]
                shape = named(shape_page, "shape", dict.fromkeys((*POSES, *DESK.about["sliders"]), "How far."))
                moved = [slider.release for slider in sliders]
                gr.on(moved, shape, [consent, image, *sliders], picture, api_name="shape", **LAST)
            with gr.Column(min_width=280):
                gr.Markdown("The same motion on several faces; then its pose, then its dynamics, exchanged.")
                others = gr.File(label="Up to two other portraits", file_count="multiple", file_types=["image"])
                number = gr.Number(1, precision=0, label="Seed")
                pair, state = start_and_stop("Exchange"), gr.HTML(status(Update("Ready.")))
                sheet = gr.Image(show_label=False, interactive=False, elem_id="exchanged")
                begin(pair, swaps_page, [consent, image, others, audio, number], [state, sheet], "swaps")


def build() -> gr.Blocks:
    """The page."""
    with Page(title="vasa_hf", delete_cache=(600, 3600), analytics_enabled=False) as page:
        gr.Markdown("# vasa_hf: talking faces from one portrait and one voice")
        text = "The people whose face and voice I use agreed to it, or do not exist; I will not pass it off as real."
        consent = gr.Checkbox(not DESK.need_consent, label=text, visible=DESK.need_consent, elem_id="consent")
        with gr.Tab("Talk"):
            image, audio = talk_tab(consent)
        with gr.Tab("3D") as tab:
            avatar_tab(consent, tab)
        inside_tabs(consent, image, audio)
        with gr.Tab("About"):
            gr.Markdown(about.CONSENT)
            video, answer = gr.Video(label="Video to look at", height=280), gr.Markdown("No video yet.")
            video.change(named(readable(about.verdict_or_hint), "verdict"), video, answer, api_name="verdict")
            for folder in (DESK.about["base"], DESK.about["folder"]):
                with gr.Accordion(f"Model card: {folder.name}", open=False):
                    gr.Markdown(about.card(folder))
        page.unload(leave)
    return page.queue(max_size=24, default_concurrency_limit=2)


def serve(options: argparse.Namespace, **launch: Any) -> tuple:
    """Serve the page; the models load meanwhile. `launch` goes to Gradio."""
    global DESK
    if options.mcp:
        check_mcp()
    if options.device is not None:
        find_device(options.device)
    share_one_heap()
    DESK = Desk(options.model, not options.private, options.device, options.moda)
    DESK.long_work, DESK.short_work = long_work, short_work
    # Not the folder of all pages of this machine, whose files are not ours to open.
    os.environ.setdefault("GRADIO_TEMP_DIR", str(DESK.jobs.root / "uploads"))
    places = {"server_name": options.host, "server_port": options.port, "share": options.share}
    looks = {"css": CSS, "theme": THEME, "footer_links": ["api", "settings"], "ssr_mode": False}
    limits = {"max_file_size": "50mb", "show_error": True, "mcp_server": options.mcp, "inbrowser": options.open}
    limits["state_session_capacity"] = 300  # of 0.3 MB each, also after people have left; Gradio keeps 10,000
    page = build()
    served = page.launch(**places, **looks, **limits, **launch, prevent_thread_lock=True)
    # Some seconds later, if no job asks sooner: reading weights takes the cores that a browser's first look needs.
    later = threading.Timer(4, DESK.models.start)
    later.daemon = True
    later.start()
    return page, *served


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve the web page.")
    add_options(parser)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that files of users go
    try:
        served = serve(parser.parse_args())[0]
    except ValueError as error:
        parser.error(str(error))
    served.block_thread()
