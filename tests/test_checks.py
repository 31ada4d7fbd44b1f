"""Numbers and texts of files that somebody made: refused in one line, before anything is computed with them."""

import json
from fractions import Fraction

import pytest
import torch
from safetensors.torch import save_file

from vasa_hf import FaceImageProcessor, Vasa1MotionTransformer, VasaAudioProcessor
from vasa_hf.checks import check_number, parse_json
from vasa_hf.cli import main
from vasa_hf.hub import read_index
from vasa_hf.media.ffmpeg import parse_fps
from vasa_hf.motion import load_motion
from vasa_hf.motion.camera_paths import CameraKeyframes, OrbitCamera

DEEP = "[" * 100_000


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, True, "1", None, [1], 11, -1])
def test_no_number_in_the_range(value):
    with pytest.raises(ValueError, match="`size` must be a number in \\[0, 10\\], got") as error:
        check_number("size", value, 0, 10)
    assert len(str(error.value)) < 200
    check_number("size", 10, 0, 10, whole=True)
    with pytest.raises(ValueError, match="whole"):
        check_number("size", 5.0, 0, 10, whole=True)


@pytest.mark.parametrize("text", [DEEP, "{", "9" * 5000, b"\xff", ""], ids=["deep", "cut", "huge", "bytes", "empty"])
def test_no_json(text):
    with pytest.raises(ValueError, match="`camera` must be JSON") as error:
        parse_json(text, "camera")
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("fps", ["1e999999999", "1e-999999999", "9" * 10_000, "1/0", "nan", "", "-25", 1e300, None])
def test_frame_rates_that_would_be_computed_for_ever(fps):
    with pytest.raises(ValueError, match="`fps` must be a number") as error:
        parse_fps(fps)
    assert len(str(error.value)) < 200
    assert parse_fps("30000/1001") == parse_fps(29.97) == parse_fps(30000 / 1001) == Fraction(30000, 1001)


@pytest.mark.parametrize(
    ("header", "tensor"),
    [
        ({"fps": "1e999999999"}, {}),
        ({"fps": "1/0"}, {}),
        ({"fps": None}, {}),
        ({"dynamics": None}, {}),
        ({"dynamics": DEEP}, {}),
        ({"dynamics": "5"}, {}),
        ({"dynamics": '{"a": "x"}'}, {}),
        ({"dynamics": '{"a": 1e999}'}, {}),
        ({"dynamics": '{"a": null}'}, {}),
        ({}, {"value": float("nan")}),
        ({}, {"shape": (0, 8)}),
        ({}, {"shape": (8,)}),
    ],
)
def test_motion_files(tmp_path, header, tensor):
    metadata = {"format": "vasa_hf.motion", "fps": "25", "dynamics": '{"a": 2}'} | header
    motion = torch.full(tensor.get("shape", (3, 8)), tensor.get("value", 0.0))
    metadata = {name: value for name, value in metadata.items() if value is not None}
    save_file({"motion": motion}, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match="`(fps|dynamics|path)`"):
        load_motion(tmp_path / "a.safetensors")


@pytest.mark.parametrize("key", [[1e308, 0, 0, 1], [0, 1e308, 0, 1], [0, 0, 0, 1e-300], [10**400, 0, 0, 1]])
def test_cameras(key):
    with pytest.raises(ValueError, match="must be"):
        CameraKeyframes([key])
    with pytest.raises(ValueError, match="at most 10,000 keyframes"):
        CameraKeyframes([[i / 100, 0, 0, 1] for i in range(10_001)])
    with pytest.raises(ValueError, match="`period_seconds`"):
        OrbitCamera(period_seconds=1e308)


@pytest.mark.parametrize("text", ["[]", DEEP, '{"_base": 5}', '{"talking_face": ["a"]}', "null"])
def test_indices(tmp_path, text):
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(ValueError, match="`(_base|talking_face|model_index.json)`"):
        read_index(tmp_path)
    assert read_index(tmp_path / "nowhere") == {}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (FaceImageProcessor, {"size": 10**9}),
        (FaceImageProcessor, {"size": "256"}),
        (FaceImageProcessor, {"max_pixels": 1e30}),
        (FaceImageProcessor, {"shift": 5}),
        (FaceImageProcessor, {"background": [0, 0]}),
        (FaceImageProcessor, {"scale": float("nan")}),
        (VasaAudioProcessor, {"fps": 0}),
        (VasaAudioProcessor, {"sampling_rate": 10**12}),
        (VasaAudioProcessor, {"context_frames": -1}),
        (VasaAudioProcessor, {"layers": 3}),
        (Vasa1MotionTransformer, {"window": 10**9}),
    ],
)
def test_configs(kind, config):
    with pytest.raises(ValueError, match=f"`{next(iter(config))}` must be"):
        kind(**config)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("iterations=abc", "`iterations` must be a whole number"),
        ("iterations=1e3", "`iterations` must be a whole number"),
        ("lr_means=NaN", "`lr_means` must be a number"),
        ("size=1000000", "`size` must be a whole number"),
        (f"avatar={DEEP}", "`avatar` must be of type dict"),
        ("deform=1", "`deform` must be of type bool"),
    ],
)
def test_settings_of_a_fit(tmp_path, capsys, setting, message):
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert main(["fit", str(tmp_path / "a.jpg"), "-o", str(tmp_path / "out"), "--set", setting]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("threads", ["0", "1000000", "-1"])
def test_threads_are_bounded_by_the_cores(tmp_path, capsys, threads):
    assert main(["demo", "-o", str(tmp_path / "out.mp4"), "--threads", threads]) == 2
    assert "`--threads` must be a whole number in [1, " in capsys.readouterr().err


def test_a_camera_file(tmp_path, capsys):
    voice, camera = tmp_path / "a.wav", tmp_path / "path.json"
    voice.write_bytes(b"x")
    for text in (DEEP, json.dumps({"a": 1}), "[" + "0," * 6_000_000 + "0]"):
        camera.write_text(text)
        assert main(["talk3d", "mara", str(voice), "-o", str(tmp_path / "o.mp4"), "--camera", str(camera)]) == 2
        error = capsys.readouterr().err
        assert "`--camera` must" in error and error.count("\n") == 1
