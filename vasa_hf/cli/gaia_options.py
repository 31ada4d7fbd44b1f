"""Options of `talk --system gaia`: head pose, landmarks of a video, instructions."""

from __future__ import annotations

import argparse
import os
from typing import Any

from vasa_hf.cli import options as shared

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".gif")
_NAMES = ("pose", "edit_landmarks", "text", "seconds")
_OTHERS = ("gaze", "distance", "emotion", "head_motion", "expression", "stitching", "multiplier")


def add_gaia_options(parser: Any) -> None:
    """Add the controls of GAIA."""
    gaia = parser.add_argument_group("gaia", "controls of --system gaia")
    gaia.add_argument(
        "--pose", metavar="YAW,PITCH,ROLL|VIDEO", help="head pose in radians, keyframes, or that of a video's face"
    )
    gaia.add_argument("--edit-landmarks", metavar="VIDEO", help="all but mouth and jaw follow the face of a video")
    gaia.add_argument("--text", metavar="WORDS", help='instruction in place of speech, such as "please smile"')
    gaia.add_argument("--seconds", type=float, help="length of a video with --text and without a voice (3)")


def refuse_gaia_options(options: argparse.Namespace) -> None:
    """Raise `ValueError` for one of these options with another system."""
    for name in _NAMES:
        if getattr(options, name, None) is not None:
            raise ValueError(f"`{name}` needs --system gaia.")


def read_gaia_controls(options: argparse.Namespace) -> dict[str, Any]:
    """Read the options as arguments of a call of `GaiaAvatarPipeline`.

    Raises:
        ValueError: If a value cannot be parsed, or the pipeline has no such control.
    """
    for name in _OTHERS:
        if name in getattr(options, "given", ()):
            raise ValueError(
                f"`{name}` is not supported by gaia; its controls are --pose, --edit-landmarks and --text."
            )
    shared.check_seed(options.seed)
    settings = {name: getattr(options, name) for name in _NAMES if getattr(options, name) is not None}
    if options.pose is not None and os.path.splitext(options.pose)[1].lower() in VIDEO_SUFFIXES:
        shared.check_files(pose=options.pose)
    elif options.pose is not None:
        settings["pose"] = shared.parse_keyframes(options.pose, lambda text: shared.parse_numbers("pose", text, 3))
    if options.edit_landmarks is not None:
        shared.check_files(edit_landmarks=options.edit_landmarks)
    if options.steps is not None:
        settings["num_inference_steps"] = options.steps
    if options.guidance is not None:
        settings["guidance_scale"] = shared.parse_weights("guidance", options.guidance)
    return settings
