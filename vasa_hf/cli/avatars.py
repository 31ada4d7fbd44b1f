"""Commands of VASA-3D: `fit` (an avatar from a portrait), `talk3d` (a video of it), `view` (live, in the browser)."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import vasa_hf
from vasa_hf.checks import parse_json
from vasa_hf.cli import options as shared
from vasa_hf.files import check_writable

MODEL = "vasa3d-small"
PRESETS = ("fast", "fast-gpu", "paper")
MAX_CAMERA_BYTES = 10_000_000
COLORS = {"white": (1.0, 1.0, 1.0), "grey": (0.5, 0.5, 0.5), "black": (0.0, 0.0, 0.0), "green": (0.0, 0.69, 0.25)}

_FIT_EXAMPLES = """examples:
  vasa-hf fit me.jpg -o me/
  vasa-hf fit me.jpg -o me/ --preset fast-gpu --device cuda --audio hello.wav --video clip.mp4
  vasa-hf fit me.jpg -o me/ --preset paper --device cuda --head flame2020.safetensors --lpips lpips \
      --sds stabilityai/stable-diffusion-2-1 --set from_scratch=true --video clip.mp4
  vasa-hf fit me.jpg -o me/ --resume        # continue a fit that was stopped
"""
_TALK_EXAMPLES = """examples:
  vasa-hf talk3d me/ hello.wav -o out.mp4
  vasa-hf talk3d me/ hello.wav -o out.mp4 --camera orbit --size 512 --background 0.2,0.3,0.4
  vasa-hf talk3d me/ hello.wav -o out.mp4 --camera path.json --emotion happy=0.6
where path.json holds [[SECONDS, AZIMUTH, ELEVATION, DISTANCE], ...], in degrees and times the portrait's distance
"""
_VIEW_EXAMPLES = """examples:
  vasa-hf view me/ --audio hello.wav
  vasa-hf view me/ --port 8090 --host 0.0.0.0        # for other machines too
"""


def add_commands(command: Any) -> None:
    """Add this module's commands to the parser."""
    fit = command("fit", _fit, "make a 3D avatar of the person in a portrait (VASA-3D)", _FIT_EXAMPLES)
    fit.add_argument("image", help="portrait: an image file")
    fit.add_argument("-o", "--output", required=True, metavar="AVATAR_DIR", help="folder to write, new or empty")
    fit.add_argument(
        "--preset", default="fast", choices=PRESETS, help="fast: minutes on two CPU cores; the others need a GPU"
    )
    fit.add_argument("--resume", action="store_true", help="continue the fit that was stopped in that folder")
    fit.add_argument("--face", type=int, help="which face of the image, 0 is the largest")
    driving = fit.add_argument_group("training motion", "by default from the package's own voice")
    driving.add_argument("--audio", action="append", metavar="SPEECH", help="audio file; may be repeated")
    driving.add_argument("--video", action="append", metavar="CLIP", help="video of a face; may be repeated")
    making = fit.add_argument_group("settings")
    making.add_argument(
        "--head", metavar="FILE", help="parametric head: FLAME's (vasa-hf convert flame), ict_facekit.npz"
    )
    making.add_argument("--lpips", metavar="DIR", help="LPIPS weights (vasa-hf convert lpips), as the paper has them")
    making.add_argument("--sds", metavar="NAME", help="text-to-image model of L_sds: a folder or a name on the Hub")
    making.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a setting, such as iterations=500; see vasa_hf/training/avatar/presets.py",
    )
    making.add_argument("--seed", type=int, help="same seed, same fit, if no time limit ends it")
    making.add_argument("--threads", type=int, help="CPU threads")
    shared.add_model_options(making, MODEL)

    talk = command("talk3d", _talk3d, "make a video of a talking avatar, seen from any side", _TALK_EXAMPLES)
    talk.add_argument("avatar", help="folder that `fit` wrote, name of an embedded avatar, or Hub repository")
    talk.add_argument("audio", help="voice: an audio file, or a video with audio")
    talk.add_argument("-o", "--output", required=True, metavar="OUT.mp4", help="video to write")
    shared.add_control_options(talk)
    shared.add_sampling_options(talk, MODEL)
    picture = talk.add_argument_group("video")
    picture.add_argument("--camera", default="fixed", help="fixed, orbit, or a file of keyframes (%(default)s)")
    picture.add_argument("--fps", default="25", help="frames per second, such as 30 or 30000/1001 (%(default)s)")
    picture.add_argument("--size", type=int, default=256, help="side of the image in pixels (%(default)s)")
    _add_background(picture, "white")
    shared.add_video_options(picture)

    view = command("view", _view, "look at an avatar in the browser while it talks", _VIEW_EXAMPLES)
    view.add_argument("avatar", help="folder that `fit` wrote, name of an embedded avatar, or Hub repository")
    view.add_argument("--audio", metavar="SPEECH", help="its speech (the voice that comes with the package)")
    view.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    view.add_argument("--port", type=int, default=8080, help="port; 0: any free one (%(default)s)")
    view.add_argument("--size", type=int, default=384, help="height of the frames in pixels (%(default)s)")
    _add_background(view, "0.93,0.93,0.93")
    shared.add_sampling_options(view, MODEL)


def _add_background(parser: Any, default: str) -> None:
    names = ", ".join(COLORS)
    parser.add_argument("--background", default=default, metavar="R,G,B", help=f"in [0, 1], or {names} (%(default)s)")


def _parse_background(text: str) -> Sequence[float]:
    """Parse the name of a colour, or three numbers."""
    if text not in COLORS and not (text[:1].isdigit() or text[:1] == "."):
        raise ValueError(f"`background` must be R,G,B in [0, 1] or one of {', '.join(COLORS)}, got {text!r}.")
    return COLORS.get(text) or shared.parse_numbers("background", text, 3)


def _load_camera(text: str) -> Any:
    """Return `fixed`, `orbit`, or the keyframes of a JSON file."""
    if text in ("fixed", "orbit"):
        return text
    if not os.path.isfile(text):
        raise ValueError(f"`camera` must be fixed, orbit or an existing JSON file of keyframes, got {text!r}.")
    if os.path.getsize(text) > MAX_CAMERA_BYTES:
        raise ValueError(f"`camera` must be a file of at most {MAX_CAMERA_BYTES:,} bytes, got {text!r}.")
    try:
        with open(text, "rb") as file:
            keyframes = parse_json(file.read(MAX_CAMERA_BYTES), "camera")
    except OSError as error:
        raise ValueError(f"`camera` must be a file that can be read, got {text!r}: {error.strerror}.") from error
    if not isinstance(keyframes, list):
        raise ValueError(f"`camera` must hold a list of keyframes, {text!r} holds {type(keyframes).__name__}.")
    return keyframes


def _fit(options: argparse.Namespace) -> int:
    named = {f"{kind}[{i}]": p for kind in ("audio", "video") for i, p in enumerate(getattr(options, kind) or [])}
    shared.check_files(image=options.image, **named)
    _check_fit_folder(options.output, options.resume)
    settings = [_parse_setting(text) for text in options.set]
    settings += [(name, getattr(options, name)) for name in ("head", "lpips", "sds") if getattr(options, name)]
    changes = dict(settings)
    if len(changes) < len(settings):
        raise ValueError(f"`set` must give each setting once, got {[name for name, _ in settings]}.")
    shared.check_seed(options.seed)
    from vasa_hf.training.avatar.presets import choose_preset

    choose_preset(options.preset, **changes)  # before the models are loaded
    pipe = shared.load_pipeline(options, "Vasa3DAvatarPipeline")
    import torch

    with closing(_Progress(pipe)) as show, _remove_if_refused(options.output):
        pipe.fit(
            options.image,
            preset=options.preset,
            output=options.output,
            audios=options.audio,
            videos=options.video,
            face=options.face,
            generator=None if options.seed is None else torch.Generator().manual_seed(options.seed),
            on_progress=show,
            **changes,
        )
    print(options.output)
    return 0


@contextmanager
def _remove_if_refused(folder: str) -> Iterator[None]:
    """Remove a new folder after bad input, unless all training frames are in it: `--resume` needs them."""
    is_new = not os.path.exists(folder)
    try:
        yield
    except ValueError:
        if is_new and not os.path.exists(os.path.join(folder, "fit", "frames", "complete")):
            shutil.rmtree(folder, ignore_errors=True)
        raise


class _Progress:
    """A progress bar for each stage of a fit, with the losses, and a line for each new preview."""

    def __init__(self, pipe: Any):
        self.pipe, self.bar, self.stage, self.preview = pipe, None, None, None

    def __call__(self, progress: Any) -> None:
        if progress.stage != self.stage:
            self.close()
            self.stage = progress.stage
            self.bar = self.pipe.progress_bar(total=progress.total)
            self.bar.set_description(progress.stage)
        self.bar.total = progress.total
        self.bar.update(progress.done - self.bar.n)
        if progress.logs:
            self.bar.set_postfix({name: f"{value:.3g}" for name, value in list(progress.logs.items())[:4]})
        if progress.preview is not None and progress.preview != self.preview:
            self.preview = progress.preview
            self.bar.write(f"vasa-hf: preview: {progress.preview}", file=sys.stderr)

    def close(self) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()


def _check_fit_folder(folder: str, resume: bool) -> None:
    """Raise `ValueError` if there is no fit to resume, or if another avatar would be overwritten."""
    stopped = os.path.isfile(os.path.join(folder, "fit", "settings.json"))
    if os.path.isfile(folder):
        raise ValueError(f"`output` must be a folder, got the file {folder!r}.")
    if resume and not stopped:
        raise ValueError(f"`resume` needs a fit that was stopped, {folder!r} holds none.")
    if not resume and stopped:
        raise ValueError(f"`output` holds a fit that was stopped: add --resume, or delete {folder!r}.")
    place = os.path.abspath(folder)
    if not os.path.isdir(place):
        while not os.path.isdir(os.path.dirname(place)):  # the first of the folders to create
            place = os.path.dirname(place)
        check_writable("output", place)
    held = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    if not resume and held - {"fit"}:  # a fit that was stopped at once leaves that folder empty
        raise ValueError(f"`output` must be a new or empty folder, {folder!r} holds {sorted(held)[0]!r}.")


def _parse_setting(text: str) -> tuple[str, Any]:
    """Parse `NAME=VALUE`; the value as JSON if it is valid JSON."""
    name, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"`set` must be NAME=VALUE, got {text!r}.")
    try:
        return name, parse_json(value, "set")
    except ValueError:
        return name, value


def _talk3d(options: argparse.Namespace) -> int:
    from vasa_hf.media.ffmpeg import parse_fps

    settings = shared.read_controls(options) | {
        "camera": _load_camera(options.camera),
        "background": _parse_background(options.background),
        "fps": parse_fps(options.fps),
        "output_size": options.size,
    }
    shared.check_files(audio=options.audio)
    return shared.talk_to_file(options, "Vasa3DAvatarPipeline", lambda pipe: pipe.load_avatar(options.avatar), settings)


def _view(options: argparse.Namespace) -> int:
    own_voice = os.path.join(os.path.dirname(os.path.abspath(vasa_hf.__file__)), "assets", "voice.flac")
    audio, background = own_voice if options.audio is None else options.audio, _parse_background(options.background)
    shared.check_files(audio=audio)
    shared.check_seed(options.seed)
    from vasa_hf.viewer import AvatarViewer, free_port

    port = free_port(options.host, options.port)  # before the models are loaded
    pipe = shared.load_pipeline(options, "Vasa3DAvatarPipeline")
    pipe.set_progress_bar_config(disable=True)
    avatar = pipe.load_avatar(options.avatar)
    _, sound, rate = pipe.prepare_audio(audio)
    seed, _ = shared.choose_seed(options)

    def speak(**controls: Any) -> Any:
        import torch

        generator = torch.Generator().manual_seed(seed)
        steps = {"num_inference_steps": 10 if options.steps is None else options.steps, "output_type": "latent"}
        return pipe(avatar, (sound, rate), generator=generator, **steps, **controls).motion[0]

    emotions = pipe.motion_transformer.config.emotions
    viewer = AvatarViewer(avatar, speak, (sound, rate), emotions, options.host, port, options.size, background)
    print(viewer.url, flush=True)
    try:
        viewer.wait()
    except KeyboardInterrupt:  # the usual end
        print("vasa-hf: stopped", file=sys.stderr)
    return 0
