"""Values that no argument takes, in every argument of the pipelines and of the command line: refused by name."""

import numpy as np
import pytest
import torch

from tests.testing_utils.pipelines import BOX, make_audio, make_image
from tests.testing_utils.promises import check_call, check_command, run

IMAGE, AUDIO = make_image(), make_audio(0.3)
FRAMES = [make_image(0), make_image(1)]
MOTION = torch.zeros(1, 3, 10)
MOTION[..., 5] = 0.5
ODD = ("object", "10^400", "bytes", "NaN", "tensor", "deep", "complex", "words")
CALL = {"box": BOX, "num_inference_steps": 1, "output_type": "np"}
# Method, what it is given, and the arguments that are spoilt one by one, each with every odd value.
METHODS = {
    "__call__": (
        {"image": IMAGE, "audio": AUDIO, **CALL},
        "image audio sampling_rate guidance_scale num_inference_steps latents generator first_window fps output_type "
        "return_dict callback_on_step_end callback_on_step_end_tensor_inputs gaze head_distance emotion head_motion "
        "face box output_size paste_back no_such_option",
    ),
    "stream": ({"image": IMAGE, "audio_chunks": [AUDIO], **CALL}, "image audio_chunks sampling_rate fps head_motion"),
    "animate": (
        {"image": IMAGE, "driving_video": FRAMES, "driving_box": BOX, "box": BOX, "output_type": "np"},
        "image driving_video relative driving_face driving_box fps output_type return_dict",
    ),
    "render": (
        {"image": IMAGE, "motion": MOTION, "box": BOX, "output_type": "np"},
        "image motion motion_fps relative audio sampling_rate fps output_type return_dict",
    ),
}
KEYPOINTS = "timesteps sigmas expression stitching driving_multiplier emotion latents"
FIT = "image preset output audios videos face generator on_progress iterations size lr_means deform"


def spoil(function, usual, names, odd, besides=()):
    """Give each argument each odd value; it, or the argument that it is read with, must be named in the message."""
    for name in names.split():
        if name in usual:
            check_call(function, **usual)
        for kind in ODD:
            if (name, kind) in besides:
                continue
            message = check_call(function, **{**usual, name: odd[kind]})
            assert message, (name, kind)
            assert f"`{name}" in message or f"`{name.split('_')[0]}" in message or "`audio" in message, (kind, message)


@pytest.mark.parametrize("method", METHODS)
def test_a_pipeline(whole, odd, method):
    usual, names = METHODS[method]
    # A list of None and text may be frames; what is in it is told by its place then.
    spoil(getattr(whole.pipe("vasa1"), method), usual, names, odd)


def test_keypoints(whole, odd):
    spoil(whole.pipe("moda"), {"image": IMAGE, "audio": AUDIO, **CALL}, KEYPOINTS, odd)


def test_pieces_of_a_stream(whole, odd):
    for kind in (*set(ODD) - {"tensor"}, "function"):
        message = check_call(whole.pipe("vasa1").stream, IMAGE, [AUDIO, odd[kind]], **CALL)
        assert "`audio_chunks`" in message or "`sampling_rate`" in message, (kind, message)
    for chunk in ((AUDIO, float("nan")), (AUDIO, 1e30), (AUDIO, -16_000), (AUDIO, 44_100.5), np.full(9000, np.nan)):
        assert check_call(whole.pipe("vasa1").stream, IMAGE, [chunk], **CALL)


def test_files_of_a_pipeline(whole, odd, tmp_path):
    pipe, usual = whole.pipe("vasa1"), {"box": BOX, "num_inference_steps": 1}
    spoil(
        lambda **options: pipe.talk_to_file(**{"path": tmp_path / "a.mp4", "image": IMAGE, "audio": AUDIO, **options}),
        usual,
        "path provenance crf sampling_rate fps on_frames",
        odd,
    )
    made = pipe(IMAGE, AUDIO, **CALL)
    spoil(lambda **options: made.save(**{"path": tmp_path / "a.mp4", **options}), {}, "path index provenance crf", odd)
    assert list(tmp_path.iterdir()) == []
    made.save(tmp_path / "a.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_avatars(whole, odd, tmp_path):
    pipe = whole.pipe("vasa3d")
    spoil(pipe.view, {"avatar": "tiny"}, "avatar camera fps output_size background", odd)
    sheet = {"avatar": "tiny", "azimuths_deg": [0.0], "output_size": 16}
    spoil(pipe.contact_sheet, sheet, "azimuths_deg motion elevation_deg output_size background", odd)
    fit = {"image": IMAGE, "output": tmp_path / "me"}
    # A list may be the frames of a video, which are read later than the image.
    spoil(lambda **options: pipe.fit(**{**fit, **options}), {}, FIT, odd, {("videos", "deep")})
    assert "no_such_setting" in check_call(pipe.fit, **fit, no_such_setting=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("loaded_once")
@pytest.mark.parametrize(
    "value", ["", "x", "nan", "inf", "-1", "1e999", "9" * 400, "0:0", "1,2,3,4,5", "a=b", "\0", "é"]
)
def test_options_of_the_command_line(whole, tmp_path, value):
    words = ("talk", whole.image, whole.audio, "-o", tmp_path / "out.mp4", "--model", whole.folder / "vasa1")
    for option in ("gaze", "distance", "emotion", "guidance", "steps", "seed", "fps", "size", "face", "crf", "box"):
        assert check_command(tmp_path, *words, f"--{option}={value}", output=tmp_path / "out.mp4"), option


@pytest.mark.parametrize(
    "words",
    [
        ("talk3d", "tiny", "{audio}", "-o", "{out}", "--camera", "spiral"),
        ("talk3d", "tiny", "{audio}", "-o", "{out}", "--background", "1,2"),
        ("talk3d", "../tiny", "{audio}", "-o", "{out}", "--model", "{folder}/vasa3d"),
        ("fit", "{image}", "-o", "{out}", "--set", "iterations"),
        ("fit", "{image}", "-o", "{out}", "--set", "iterations=1e400"),
        ("fit", "{image}", "-o", "{audio}/me"),
        ("fit", "{image}", "-o", "{image}"),
        ("fit", "{image}", "-o", "{out}", "--resume"),
        ("prepare", "{image}", "-o", "{out}"),
        ("prepare", "{out}", "-o", "{out}"),
        ("prepare", "{folder}", "-o", "{out}", "--workers", "0"),
        ("prepare", "{folder}", "-o", "{out}", "--set", "min_face=nan"),
        ("prepare", "{folder}", "-o", "{out}", "--set", "no_such=1"),
        ("prepare", "{folder}", "-o", "{out}", "--engine", "steam"),
        ("prepare", "--check", "{out}"),
        ("convert", "moda", "{image}", "{out}"),
        ("convert", "liveportrait", "{out}", "{out}"),
        ("convert", "syncnet", "{image}", "{out}"),
        ("convert", "lpips", "{image}", "{image}", "{out}"),
        ("convert", "lpips", "{image}", "{out}"),
        ("convert", "flame", "{image}", "{out}.safetensors"),
        ("eval", "--data", "{out}", "--output", "{out}"),
        ("eval", "--data", "{folder}", "--output", "{out}", "--parts", "legs"),
        ("eval", "--output", "{out}", "--remake"),
        ("push", "{folder}", "me/x"),
        ("push", "{out}", "no name"),
        ("bench", "--threads", "x"),
        ("view", "tiny", "--port", "99999999"),
        ("view", "tiny", "--audio", ""),
        ("talk", "{image}", "{audio}", "-o", "{out}", "--model", ""),
        ("animate", "{image}", "{audio}", "-o", "{out}", "--model", ""),
        ("bench", "moda", "--model", ""),
        ("bench", "marks", "--limit", "-1"),
        ("bench", "--threads", "1,,2"),
        ("talk", "{image}", "{audio}", "-o", "{out}", "--emotion", "happy=0.5,happy=0.7"),
        ("talk", "{image}", "{audio}", "-o", "{out}", "--guidance", "audio=1,audio=2"),
        ("talk", "{image}", "{audio}", "-o", "{out}", "--box", "1;2;3;4"),
        ("talk", "{image}", "{audio}", "-o", "{out}", "--device", "vulkan"),
        ("app", "--port", "-1"),
        ("crop", "{image}", "--size", "7", "--box", "1,1,80,80"),
    ],
    ids=" ".join,
)
def test_commands(whole, tmp_path, words):
    places = {"image": whole.image, "audio": whole.audio, "folder": whole.folder, "out": tmp_path / "out.mp4"}
    assert check_command(tmp_path, *(word.format(**places) for word in words))


def test_no_command_prints_a_traceback_for_an_unknown_word():
    status, said, lines = run("dance")
    assert status == 2 and said == "" and "invalid choice" in lines[-1]
