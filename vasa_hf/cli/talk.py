"""Commands for images and videos: `talk`, `demo`, `animate`, `crop`, `inspect`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import vasa_hf
from vasa_hf.checks import naming
from vasa_hf.cli import options as shared
from vasa_hf.cli.gaia_options import add_gaia_options, read_gaia_controls, refuse_gaia_options
from vasa_hf.files import VIDEO_SUFFIXES
from vasa_hf.hub import resolve

_TALK_EXAMPLES = """examples:
  vasa-hf talk me.jpg hello.wav -o out.mp4
  vasa-hf talk me.jpg hello.mp3 -o out.mp4 --seed 1 --paste-back --fps 30
  vasa-hf talk me.jpg hello.wav -o out.mp4 --gaze 0.2,0 --distance 1.2 --emotion happy=0.6
  vasa-hf talk me.jpg hello.wav -o out.mp4 --gaze "0:0,0 2:0.3,0 4:0,0" --emotion "0:happy=0 3:happy=1"
  vasa-hf talk me.jpg hello.wav -o out.mp4 --system moda --emotion happiness --expression smile=0.3
  vasa-hf talk me.jpg hello.wav -o out.mp4 --system moda --model me/joyvasa-converted
  vasa-hf talk me.jpg hello.wav -o out.mp4 --system gaia --pose "0:0,0,0 2:0.4,0,0"
  vasa-hf talk me.jpg -o out.mp4 --system gaia --text "please smile" --seconds 3
"""
_ANIMATE_EXAMPLES = """examples:
  vasa-hf animate me.jpg driving.mp4 -o out.mp4
  vasa-hf animate me.jpg driving.mp4 -o out.mp4 --region lips --paste-back --motion template.safetensors
  vasa-hf animate me.jpg template.safetensors -o out.mp4 --multiplier 1.2
  vasa-hf animate me.jpg driving.mp4 -o out.mp4 --system vasa1 --absolute
"""


class _System(NamedTuple):
    """A pipeline's public name, its embedded weights, the function that reads its options, has it keypoints."""

    pipeline: str
    model: str
    settings: Callable[[argparse.Namespace], dict[str, Any]]
    has_keypoints: bool


_SYSTEMS = {
    "vasa1": _System("VasaTalkingFacePipeline", "vasa-small", shared.read_controls, False),
    "moda": _System("ModaTalkingHeadPipeline", "moda-small", shared.read_keypoint_controls, True),
    "gaia": _System("GaiaAvatarPipeline", "gaia-small", read_gaia_controls, False),
}
_MODEL, _DETECTOR = "vasa-small", "vasa-small/forgery_detector"  # of `inspect`
_REGIONS = ("all", "expression", "pose", "lips", "eyes")


def add_commands(command: Any) -> None:
    """Add this module's commands to the parser."""
    talk = command("talk", _talk, "make a talking video from a portrait and a voice", _TALK_EXAMPLES)
    talk.add_argument("image", help="portrait: an image file")
    talk.add_argument("audio", nargs="?", help="voice: an audio file, or a video with audio; not needed with --text")
    talk.add_argument(
        "-o", "--output", required=True, metavar="OUT.mp4", help="video to write; .webm, or .gif without audio"
    )
    add_talk_options(talk)

    demo = command(
        "demo",
        _demo,
        "make a talking video from the portrait and the voice that come with the package",
        "example:\n  vasa-hf demo -o demo.mp4\n",
    )
    demo.add_argument("-o", "--output", default="demo.mp4", metavar="OUT.mp4", help="video to write (%(default)s)")
    add_talk_options(demo)

    animate = command(
        "animate", _animate, "animate a portrait by the face of a video or by a saved motion", _ANIMATE_EXAMPLES
    )
    animate.set_defaults(arguments={"motion": "driving"})
    animate.add_argument("image", help="portrait: an image file")
    animate.add_argument("driving", help="video of a face, or saved motion (.safetensors)")
    animate.add_argument(
        "-o", "--output", required=True, metavar="OUT.mp4", help="video to write; .webm, or .gif without audio"
    )
    driving = animate.add_argument_group("driving")
    driving.add_argument("--absolute", action="store_true", help="copy pose and expression, not their change")
    driving.add_argument("--driving-face", type=int, help="which face of the video, 0 is the largest")
    driving.add_argument("--driving-box", metavar="X0,Y0,X1,Y1", help="its box in the first frame, in pixels")
    driving.add_argument("--region", choices=_REGIONS, help="moda: part of the face that is animated (all)")
    driving.add_argument(
        "--expression-friendly",
        action="store_true",
        default=None,
        help="moda: adapt the motion to the face's size",
    )
    driving.add_argument("--eyes", type=float, metavar="RATIO", help="moda: openness of the eyes, such as 0.3")
    driving.add_argument("--lips", type=float, metavar="RATIO", help="moda: openness of the lips, such as 0.1")
    shared.add_edit_options(animate)
    _add_picture_options(animate, None)
    making = animate.add_argument_group("models")
    _add_system(making, "moda")
    making.add_argument("--threads", type=int, help="CPU threads")
    shared.add_model_options(making, None)

    crop = command(
        "crop",
        _crop,
        "find the faces in an image and crop one, as `talk` does",
        "examples:\n  vasa-hf crop group.jpg\n  vasa-hf crop group.jpg -o face.png --face 1 --preview seen.png\n",
    )
    crop.add_argument("image", help="an image file")
    crop.add_argument("-o", "--output", metavar="OUT.png", help="file for the crop")
    crop.add_argument("--preview", metavar="OUT.png", help="file for the image with boxes, landmarks and the crop")
    crop.add_argument("--size", type=int, default=256, help="side of the square in pixels (%(default)s)")
    crop.add_argument("--json", action="store_true", help="print the faces as JSON")
    shared.add_face_options(crop)
    shared.add_model_options(crop)

    inspect = command(
        "inspect",
        _inspect,
        "check whether the metadata, the watermark or a C2PA manifest say that vasa_hf made a video or image, and "
        "whether the face of a video looks synthetic",
        "examples:\n  vasa-hf inspect out.mp4\n  vasa-hf inspect frame.jpg --json\n"
        "\nexit status: 0 whatever is found (`found` in the JSON), 2 if the file cannot be read\n",
    )
    inspect.set_defaults(arguments={"path": "video"})
    inspect.add_argument("video", help="a video or image file")
    inspect.add_argument(
        "--detector", default=_DETECTOR, help="folder of a trained forgery detector, or none (%(default)s)"
    )
    inspect.add_argument("--json", action="store_true", help="as JSON")


def _add_system(parser: Any, default: str) -> None:
    parser.add_argument("--system", choices=list(_SYSTEMS), default=default, help="models (%(default)s)")


def add_talk_options(parser: argparse.ArgumentParser) -> None:
    """Add all options of a talking video but its files."""
    _add_system(parser, "vasa1")
    shared.add_control_options(parser)
    shared.add_edit_options(parser)
    add_gaia_options(parser)
    shared.add_sampling_options(parser, None)
    _add_picture_options(parser, "25")


def _add_picture_options(parser: argparse.ArgumentParser, fps: str | None) -> None:
    picture = parser.add_argument_group("video")
    picture.add_argument("--fps", default=fps, help=f"frames per second, such as 30 or 30000/1001 ({fps or 'its own'})")
    picture.add_argument("--size", type=int, help="side of the face's square in pixels, such as 256 or 512")
    shape = picture.add_mutually_exclusive_group()
    shape.add_argument("--paste-back", action="store_true", help="the whole image with the face in it")
    shape.add_argument("--crop", dest="paste_back", action="store_false", help="the face's square (default)")
    shared.add_face_options(picture)
    shared.add_video_options(picture)


def _picture_settings(options: argparse.Namespace) -> dict[str, Any]:
    from vasa_hf.media.ffmpeg import parse_fps

    shared.check_faces(options, "")
    return {
        "fps": None if options.fps is None else parse_fps(options.fps),
        "face": options.face,
        "box": None if options.box is None else shared.parse_numbers("box", options.box, 4),
        "output_size": options.size,
        "paste_back": options.paste_back,
    }


def _choose_model(options: argparse.Namespace, system: _System) -> None:
    """Set the default of `--model`, or raise `ValueError` if the package has no weights of this system."""
    if options.model is None:
        options.model = shared.find_embedded(system.model)


def find_system(name: str) -> tuple[str, str]:
    """Public name of the pipeline of `--system`, and its embedded weights."""
    return _SYSTEMS[name].pipeline, _SYSTEMS[name].model


def read_talk_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Read the options of `add_talk_options` as arguments of a pipeline's call."""
    if options.system != "gaia":
        refuse_gaia_options(options)
    return _SYSTEMS[options.system].settings(options) | _picture_settings(options)


def _talk(options: argparse.Namespace) -> int:
    system = _SYSTEMS[options.system]
    _choose_model(options, system)
    # Checks that need no torch come first.
    settings = read_talk_settings(options)
    if options.audio is None and "text" not in settings:
        raise ValueError("`audio` must be given: a voice.")
    shared.check_files(image=options.image, **({} if options.audio is None else {"audio": options.audio}))
    return shared.talk_to_file(options, system.pipeline, lambda _: options.image, settings)


def _animate(options: argparse.Namespace) -> int:
    shared.check_files(image=options.image, driving=options.driving)
    shared.check_faces(options, "", "driving_")
    shared.check_target("output", options.output, *VIDEO_SUFFIXES)
    if options.motion is not None:
        shared.check_target("--motion", options.motion, ".safetensors")
    credentials = shared.find_credentials(options)
    system = _SYSTEMS[options.system]
    _choose_model(options, system)
    settings = {"relative": not options.absolute, **_picture_settings(options)}
    own = {"region": options.region, "eye_ratio": options.eyes, "lip_ratio": options.lips}
    own = {**own, "expression_friendly": options.expression_friendly, **shared.read_edits(options)}
    own = {name: value for name, value in own.items() if value is not None}
    if own and not system.has_keypoints:
        raise ValueError(f"`{next(iter(own))}` needs --system moda.")
    pipe = shared.load_pipeline(options, system.pipeline)
    settings |= {"provenance": not options.no_provenance, "crf": options.crf, "credentials": credentials}
    with shared.frame_counter(pipe) as show:
        if options.driving.lower().endswith(".safetensors"):
            if own.pop("expression_friendly", None) or options.driving_face is not None or options.driving_box:
                wanted = "--expression-friendly, --driving-face or --driving-box"
                raise ValueError(f"`driving` must be a video with {wanted}.")
            settings["fps"] = settings["fps"] or 25
            write = pipe.render_to_file
        else:
            box = None if options.driving_box is None else shared.parse_numbers("driving_box", options.driving_box, 4)
            settings |= {"driving_face": options.driving_face, "driving_box": box}
            write = pipe.animate_to_file
        result = write(options.output, options.image, options.driving, on_frames=show, **settings, **own)
    if options.motion is not None:
        result.save(options.motion)
    print(options.output)
    return 0


def _demo(options: argparse.Namespace) -> int:
    assets = os.path.join(os.path.dirname(os.path.abspath(vasa_hf.__file__)), "assets")
    options.image, options.audio = os.path.join(assets, "portrait.jpg"), os.path.join(assets, "voice.flac")
    return _talk(options)


def _crop(options: argparse.Namespace) -> int:
    for name, path in (("output", options.output), ("preview", options.preview)):
        if path is not None:
            shared.check_target(name, path, ".png")
    shared.check_faces(options, "")
    if not os.path.isfile(options.image):
        raise ValueError(f"`image` must be an existing file, got {options.image!r}.")
    box = None if options.box is None else shared.parse_numbers("box", options.box, 4)
    device = shared.find_device(options.device)
    folder = resolve(options.model)

    from vasa_hf import FaceAnalyzer, FaceImageProcessor

    shared.quiet_libraries()
    processor = FaceImageProcessor.from_pretrained(folder, subfolder="image_processor")
    analyzer = FaceAnalyzer.from_pretrained(folder, subfolder="face_analyzer").float()
    picture = processor.load(options.image)
    faces = analyzer.to(device).detect(picture)
    chosen = processor.choose(faces, tuple(picture.shape[-2:]), options.face) if box is None else None
    crop = processor.crop(picture, chosen, box, size=options.size)
    if options.output is not None:
        shared.save_png(processor.preview(crop.image), options.output)
    if options.preview is not None:
        shared.save_png(processor.preview(picture, faces, crop), options.preview)
    found = [
        {
            "face": index,
            "score": round(face.score, 3),
            "box": [round(value, 1) for value in face.box.tolist()],
            "pose_degrees": [round(value, 1) for value in face.pose[:3].rad2deg().tolist()],
        }
        for index, face in enumerate(faces)
    ]
    if options.json:
        print(json.dumps({"faces": found, "crop_from_image": crop.crop_from_image.tolist()}))
        return 0
    for face in found:
        print("face {face}: score {score}, box {box}, yaw pitch roll {pose_degrees} degrees".format(**face))
    return 0


def _judge(video: str, detector: str) -> Any:
    """Verdict of the forgery detector, or `None` where there is no face."""
    from vasa_hf import FaceAnalyzer, FaceImageProcessor, ForgeryDetector
    from vasa_hf.forgery import judge_video

    shared.quiet_libraries()
    folder = resolve(_MODEL)
    with naming("detector"):
        model = ForgeryDetector.from_pretrained(resolve(detector)).float().eval()
    analyzer = FaceAnalyzer.from_pretrained(folder, subfolder="face_analyzer").float()
    processor = FaceImageProcessor.from_pretrained(folder, subfolder="image_processor")
    return judge_video(video, model, analyzer, processor)


def _inspect(options: argparse.Namespace) -> int:
    from vasa_hf.media import MARK_THRESHOLD, find_provenance

    with naming("video"):
        seen = find_provenance(options.video)
    verdict = None if seen.is_image or options.detector == "none" else _judge(options.video, options.detector)
    if options.json:
        facts = {"manifest": seen.note, "mark_score": round(seen.mark_score, 2), "marked": seen.is_marked}
        facts |= {"c2pa": seen.c2pa, "c2pa_checked": seen.c2pa_checked, "found": seen.found}
        detected = verdict and {"probability": round(verdict.probability, 3), "windows": verdict.windows}
        print(json.dumps({**facts, "detector": detected}))
        return 0
    print(f"manifest  {'none' if seen.note is None else json.dumps(seen.note)}")
    found = "found" if seen.is_marked else "not found"
    print(f"mark      {found} (score {seen.mark_score:.1f}, threshold {MARK_THRESHOLD:.1f})")
    missing = "none" if seen.c2pa_checked else "not looked for: pip install 'vasa-hf[c2pa]'"
    print(f"c2pa      {missing if seen.c2pa is None else json.dumps(seen.c2pa)}")
    if verdict is not None:
        print(f"detector  {verdict.probability:.0%} synthetic, of {verdict.windows} windows; an estimate, not a proof")
    elif options.detector != "none":
        print(f"detector  no verdict: {'it judges videos' if seen.is_image else 'no face for 8 frames'}")
    print("made by vasa_hf" if seen.found else "nothing of vasa_hf was found, which proves nothing")
    return 0
