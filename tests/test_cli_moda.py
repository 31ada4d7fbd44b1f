"""The command line before LivePortrait's renderer: `talk --system moda` and `animate`, with tiny real models."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.testing_utils.pipelines import (
    make_audio,
    make_image,
    make_joyvasa_components,
    make_moda_components,
    make_vasa1_components,
)
from vasa_hf import (
    FaceAnalyzer,
    JoyVasaTalkingHeadPipeline,
    ModaTalkingHeadPipeline,
    VasaTalkingFacePipeline,
    load_motion,
)
from vasa_hf.bench.talking import STAGES
from vasa_hf.cli import main
from vasa_hf.hub import embedded_path
from vasa_hf.media import VideoReader, VideoWriter, load_audio, read_provenance, read_video, save_wav
from vasa_hf.pipelines.keypoint_motion import KEYPOINT_SPEC

BOX = "20,20,70,76"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    ModaTalkingHeadPipeline(**make_moda_components()).save_pretrained(folder / "model")
    VasaTalkingFacePipeline(**make_vasa1_components()).save_pretrained(folder / "vasa1")
    Image.fromarray(make_image()).save(folder / "me.png")
    save_wav(folder / "voice.wav", make_audio(0.9), 16_000)
    with VideoWriter(folder / "drive.mp4", 30, (88, 96), (make_audio(0.2), 16_000)) as writer:
        for i in range(6):
            writer.write(np.roll(make_image(7), 2 * i, axis=1))
    return folder


def run(files, command, what, out, *extra):
    words = [command, files / "me.png", files / what, "-o", out, "--box", BOX, "--model", files / "model", *extra]
    if command == "animate":
        words += ["--driving-box", BOX]
    return main(list(map(str, words)))


def test_talk_by_moda(files, tmp_path, capsys):
    out, system = tmp_path / "out.mp4", ("--system", "moda", "--steps", "2", "--seed", "1")
    assert run(files, "talk", "voice.wav", out, *system) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert len(list(read_video(out))) == 23 and read_provenance(out)["model"] == "model"
    changes = (
        ("--emotion", "happiness"),
        ("--emotion", "0:happiness 0.4:fear"),
        ("--expression", "smile=0.5,brow=1"),
        ("--expression", "0:smile=0 0.5:smile=1"),
        ("--guidance", "audio=3"),
        ("--head-motion", "0"),
    )
    motions = []
    for index, words in enumerate(((), *changes)):
        file = tmp_path / f"{index}.safetensors"
        assert run(files, "talk", "voice.wav", out, *system, *words, "--motion", file) == 0
        motions.append(load_motion(file)[0])
    for index, words in enumerate(changes, start=1):
        assert not torch.equal(motions[0], motions[index]), words


def test_converted_joyvasa_talks(files, tmp_path, capsys):
    JoyVasaTalkingHeadPipeline(**make_joyvasa_components()).save_pretrained(tmp_path / "model")
    words = ["talk", files / "me.png", files / "voice.wav", "-o", tmp_path / "out.mp4", "--box", BOX, "--steps", "2"]
    words += ["--system", "moda", "--model", tmp_path / "model"]
    assert main(list(map(str, words))) == 0
    assert len(list(read_video(tmp_path / "out.mp4"))) > 5
    assert main(list(map(str, [*words, "--emotion", "fear"]))) == 2
    assert "`--emotion` is no option here" in capsys.readouterr().err


def test_animate_by_a_video_and_by_its_template(files, tmp_path, capsys):
    out, template = tmp_path / "out.mp4", tmp_path / "template.safetensors"
    assert run(files, "animate", "drive.mp4", out, "--motion", template, "--crf", "4") == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert VideoReader(out).fps == 30 and load_audio(out)[0].shape[1] > 0
    motion, spec, fps, _ = load_motion(template)
    assert spec == KEYPOINT_SPEC and fps == 30 and motion.shape == (1, 6, 69)
    again = tmp_path / "again.mp4"
    words = ["animate", files / "me.png", template, "-o", again, "--box", BOX, "--model", files / "model"]
    assert main(list(map(str, [*words, "--fps", "30", "--crf", "4"]))) == 0
    first, second = (np.stack(list(read_video(path))).astype(float) for path in (out, again))
    assert first.shape == second.shape and np.abs(first - second).mean() < 3
    for extra in (("--region", "lips"), ("--absolute",), ("--multiplier", "2"), ("--lips", "0.4"), ("--no-stitching",)):
        other = tmp_path / "other.mp4"
        assert run(files, "animate", "drive.mp4", other, "--crf", "4", *extra) == 0
        assert np.abs(np.stack(list(read_video(other))).astype(float) - first).max() > 3, extra


def test_animate_by_vasa1(files, tmp_path):
    out = tmp_path / "out.mp4"
    words = ["animate", files / "me.png", files / "drive.mp4", "-o", out, "--box", BOX, "--system", "vasa1"]
    words += ["--model", files / "vasa1", "--paste-back"]
    with pytest.raises(SystemExit):
        main([*map(str, words), "--region", "nose"])
    # The tiny analyzer finds no face in the driving video: that is told, and nothing is left behind.
    assert main(list(map(str, words))) == 2 and not out.exists()
    assert main(list(map(str, [*words, "--driving-box", BOX]))) == 0
    assert VideoReader(out).size == (88, 96)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("talk", "voice.wav", "--system", "moda", "--gaze", "0,0"), "`--gaze` is not supported by moda"),
        (("talk", "voice.wav", "--system", "moda", "--emotion", "hungry"), "`--emotion` knows the names"),
        (("talk", "voice.wav", "--system", "moda", "--expression", "sneeze=1"), "`--expression` knows the names"),
        (("talk", "voice.wav", "--expression", "smile=1"), "`--expression` needs --system moda"),
        (("animate", "none.mp4"), "`driving` must be an existing file"),
        (("animate", "voice.wav"), "voice.wav"),
        (("animate", "drive.mp4", "--system", "vasa1", "--lips", "0.2"), "`--lips` needs --system moda"),
        (("animate", "drive.mp4", "--multiplier", "9"), "`--multiplier` must be a number"),
    ],
)
def test_errors_are_one_line(files, tmp_path, capsys, words, message):
    command, what, *extra = words
    assert run(files, command, what, tmp_path / "out.mp4", *extra) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("vasa-hf: error: ") and message in said
    assert not list(tmp_path.iterdir())


@pytest.mark.e2e
@pytest.mark.skipif(not embedded_path("vasa-small").is_dir(), reason="the embedded weights are not in this checkout")
def test_bench_measures_the_same_of_moda(tmp_path, capsys):
    """With the embedded analyzer, which finds the package's portrait."""
    analyzer = FaceAnalyzer.from_pretrained(embedded_path("vasa-small"), subfolder="face_analyzer").float()
    ModaTalkingHeadPipeline(**make_moda_components() | {"face_analyzer": analyzer}).save_pretrained(tmp_path / "model")
    words = ["bench", "moda", "--model", str(tmp_path / "model"), "--seconds", "1", "--steps", "1", "--json"]
    assert main([*words, "--threads", "1"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["output_size"] == 32 and result["real_time_factor"] > 0
    assert 0 < result["first_frame_seconds"] and set(result["frames_per_second"]) == set(STAGES)
    assert main(["bench", "moda", "--avatar", "mara"]) == 2
