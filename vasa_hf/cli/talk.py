"""Commands about pictures and videos: `talk`, `demo`, `crop`, `inspect`."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

import vasa_hf
from vasa_hf.cli import options as shared
from vasa_hf.hub import resolve

_TALK_EXAMPLES = """examples:
  vasa-hf talk me.jpg hello.wav -o out.mp4
  vasa-hf talk me.jpg hello.mp3 -o out.mp4 --seed 1 --paste-back --fps 30
  vasa-hf talk me.jpg hello.wav -o out.mp4 --gaze 0.2,0 --distance 1.2 --emotion happy=0.6
  vasa-hf talk me.jpg hello.wav -o out.mp4 --gaze "0:0,0 2:0.3,0 4:0,0" --emotion "0:happy=0 3:happy=1"
"""


def add_commands(command: Any) -> None:
    """Add this module's commands to the parser."""
    talk = command("talk", _talk, "make a talking video from a portrait and a voice", _TALK_EXAMPLES)
    talk.add_argument("image", help="portrait: a picture file")
    talk.add_argument("audio", help="voice: a sound file, or a video with sound")
    talk.add_argument("-o", "--output", required=True, metavar="OUT.mp4", help="video to write")
    _add_talk_options(talk)

    demo = command(
        "demo",
        _demo,
        "make a talking video from the portrait and the voice that come with the package",
        "example:\n  vasa-hf demo -o demo.mp4\n",
    )
    demo.add_argument("-o", "--output", default="demo.mp4", metavar="OUT.mp4", help="video to write (%(default)s)")
    _add_talk_options(demo)

    crop = command(
        "crop",
        _crop,
        "find the faces of a picture and cut one out, as `talk` would",
        "examples:\n  vasa-hf crop group.jpg\n  vasa-hf crop group.jpg -o face.png --face 1 --preview seen.png\n",
    )
    crop.add_argument("image", help="a picture file")
    crop.add_argument("-o", "--output", metavar="OUT.png", help="picture of the square to write")
    crop.add_argument("--preview", metavar="OUT.png", help="write the picture with boxes, landmarks and the square")
    crop.add_argument("--size", type=int, default=256, help="side of the square in pixels (%(default)s)")
    crop.add_argument("--json", action="store_true", help="print what was found as JSON")
    shared.add_face_options(crop)
    shared.add_model_options(crop)

    inspect = command(
        "inspect",
        _inspect,
        "tell whether a video says, or bears the mark, that it was made by vasa_hf",
        "example:\n  vasa-hf inspect out.mp4\n",
    )
    inspect.add_argument("video", help="a video file")
    inspect.add_argument("--json", action="store_true", help="as JSON")


def _add_talk_options(parser: argparse.ArgumentParser) -> None:
    shared.add_control_options(parser)
    shared.add_making_options(parser)
    picture = parser.add_argument_group("picture")
    picture.add_argument("--fps", default="25", help="frames a second, such as 30 or 30000/1001 (%(default)s)")
    picture.add_argument("--size", type=int, help="side of the face's square in pixels, such as 256 or 512")
    shape = picture.add_mutually_exclusive_group()
    shape.add_argument("--paste-back", action="store_true", help="the whole picture, the face put back into it")
    shape.add_argument("--crop", dest="paste_back", action="store_false", help="the face's square (default)")
    shared.add_face_options(picture)
    shared.add_video_options(picture)


def _talk(options: argparse.Namespace) -> int:
    from vasa_hf.media.ffmpeg import parse_fps

    # What can be seen to be wrong without torch is told at once.
    settings = shared.control_settings(options) | {
        "fps": parse_fps(options.fps),
        "face": options.face,
        "box": None if options.box is None else shared.numbers("box", options.box, 4),
        "output_size": options.size,
        "paste_back": options.paste_back,
    }
    shared.check_files(image=options.image, audio=options.audio)
    return shared.talk_to_file(options, "VasaTalkingFacePipeline", lambda _: options.image, settings)


def _demo(options: argparse.Namespace) -> int:
    assets = os.path.join(os.path.dirname(os.path.abspath(vasa_hf.__file__)), "assets")
    options.image, options.audio = os.path.join(assets, "portrait.jpg"), os.path.join(assets, "voice.flac")
    return _talk(options)


def _crop(options: argparse.Namespace) -> int:
    for name, path in (("output", options.output), ("preview", options.preview)):
        if path is not None:
            shared.check_target(name, path, ".png")
    if not os.path.isfile(options.image):
        raise ValueError(f"`image` must be an existing picture file, got {options.image!r}.")
    box = None if options.box is None else shared.numbers("box", options.box, 4)
    folder = resolve(options.model)

    from vasa_hf import FaceAnalyzer, FaceImageProcessor

    shared.quiet_libraries()
    processor = FaceImageProcessor.from_pretrained(folder, subfolder="image_processor")
    analyzer = FaceAnalyzer.from_pretrained(folder, subfolder="face_analyzer").float()
    picture = processor.load(options.image)
    faces = analyzer.to(options.device).detect(picture)
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


def _inspect(options: argparse.Namespace) -> int:
    from vasa_hf.media import MARK_THRESHOLD, detect_mark, read_provenance, read_video

    manifest = read_provenance(options.video)
    score = detect_mark(read_video(options.video))
    if options.json:
        print(json.dumps({"manifest": manifest, "mark_score": round(score, 2), "marked": score > MARK_THRESHOLD}))
        return 0
    print(f"manifest  {'none' if manifest is None else json.dumps(manifest)}")
    found = "found" if score > MARK_THRESHOLD else "not found"
    print(f"mark      {found} (score {score:.1f}, threshold {MARK_THRESHOLD:.1f})")
    return 0
