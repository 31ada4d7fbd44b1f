"""The command line: thin, so that these tests are about words, files, exit codes and streams, with tiny real models."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.testing_utils.pipelines import make_audio, make_image, make_vasa1_components
from vasa_hf import VasaTalkingFacePipeline, load_motion
from vasa_hf.bench import talking as bench
from vasa_hf.cli import main
from vasa_hf.hub import EMBEDDED, embedded_path
from vasa_hf.media import VideoReader, VideoWriter, embed_mark, load_audio, read_provenance, read_video, save_wav
from vasa_hf.models.forgery_detector import ForgeryDetector

ROOT = Path(__file__).resolve().parents[1]
PORTRAIT = ROOT / "vasa_hf" / "assets" / "portrait.jpg"
has_analyzer = pytest.mark.skipif(
    not (embedded_path("vasa-small") / "face_analyzer").is_dir(), reason="the embedded weights are not in this checkout"
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny model, an image and audio."""
    folder = tmp_path_factory.mktemp("cli")
    VasaTalkingFacePipeline(**make_vasa1_components()).save_pretrained(folder / "model")
    Image.fromarray(make_image()).save(folder / "me.png")
    Image.fromarray(np.full((96, 96, 3), 128, np.uint8)).save(folder / "grey.png")
    save_wav(folder / "voice.wav", make_audio(0.9), 16_000)
    return folder


def talk(files, out, *extra):
    usual = {"--box": "20,20,70,76", "--steps": "2", "--model": str(files / "model")}
    words = [word for name, value in usual.items() if name not in extra for word in (name, value)]
    return main(["talk", str(files / "me.png"), str(files / "voice.wav"), "-o", str(out), *words, *extra])


def test_talk_writes_a_video_and_tells_only_its_name(files, tmp_path, capsys):
    out = tmp_path / "out.mp4"
    assert talk(files, out, "--seed", "1", "--fps", "30000/1001", "--size", "64") == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    assert "frames" in said.err and "27/27" in said.err and "seed 1" in said.err
    video = VideoReader(out)
    assert video.size == (64, 64) and str(video.fps) == "30000/1001" and len(list(video)) == 27
    samples, rate = load_audio(out)
    assert abs(samples.shape[1] / rate - 27 * 1001 / 30000) < 0.04
    assert read_provenance(out)["model"] == "model"
    assert os.listdir(tmp_path) == ["out.mp4"]


def test_same_seed_same_motion(files, tmp_path):
    motions = []
    for seed in (1, 1, 2):
        motion = tmp_path / f"{len(motions)}.safetensors"
        assert talk(files, tmp_path / "out.mp4", "--seed", str(seed), "--motion", str(motion)) == 0
        motions.append(load_motion(motion)[0])
    assert (motions[0] == motions[1]).all() and (motions[0] - motions[2]).abs().max() > 1e-3


def test_talk_hands_every_option_on(files, tmp_path):
    def motion(*extra):
        assert (
            talk(files, tmp_path / "out.mp4", "--seed", "1", "--motion", str(tmp_path / "m.safetensors"), *extra) == 0
        )
        return load_motion(tmp_path / "m.safetensors")[0]

    plain = motion()
    for extra in (
        ("--gaze", "-0.3,0.1"),
        ("--gaze", "0:0,0 0.5:-0.3,0.1"),
        ("--distance", "1.4"),
        ("--distance", "0:1 0.8:1.5"),
        ("--emotion", "happy"),
        ("--emotion", "happy=0.8,sad=-0.1"),
        ("--emotion", "0:happy=0 0.5:happy=1"),
        ("--head-motion", "0.3"),
        ("--guidance", "audio=2,gaze=0"),
        ("--steps", "3"),
    ):
        assert (motion(*extra) - plain).abs().max() > 1e-5, extra
    assert motion("--threads", "1").shape == plain.shape
    whole = (files / "me.png", tmp_path / "out.mp4")
    motion("--paste-back", "--no-provenance", "--crf", "30")
    assert VideoReader(whole[1]).size == Image.open(whole[0]).size
    assert read_provenance(whole[1]) is None


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--gaze", "0.3"), "`--gaze` must be 2 numbers with commas between them, got '0.3'"),
        (("--gaze", "3,0"), "`--gaze` must lie in"),
        (("--gaze", "0:0,0 oops"), "keyframes must be SECONDS:VALUE, got 'oops'"),
        (("--distance", "far"), "`--distance` must be 1 number, got 'far'"),
        (("--distance", "9"), "`--distance` must lie in"),
        (("--emotion", "happy=very"), "`--emotion` must be 1 number, got 'very'"),
        (("--emotion", "hungry=1"), "`--emotion` knows the names"),
        (("--guidance", "light=1"), "`--guidance` knows the names"),
        (("--steps", "0"), "`--steps` must be a whole number"),
        (("--fps", "x"), "`--fps` must be a number of frames"),
        (("--size", "100"), "`--size` must be one of [32, 64]"),
        (("--box", "1,2"), "`--box` must be 4 numbers"),
        (("--face", "0"), "`--face` has no effect with --box: leave one of them out"),
        (("--guidance", "audio=1,audio=2"), "`--guidance` must have each name once, got 'audio' twice"),
        (("--crf", "99"), "`--crf` must be a whole number in [0, 51], got 99"),
        (("--seed", "-1"), "`--seed` must be a whole number from 0 to 2**63 - 1, got -1"),
        (("--threads", "0"), "`--threads` must be a whole number in [1, "),
        (("--device", "abacus"), "`--device` must be one of torch's"),
        (("--device", "meta"), "`--device` must be available and work, got 'meta'"),
        (("--device", "cuda:99"), "`--device` must be available"),
        (("--device", "mps"), "`--device` must be available"),
        (("--motion", "m.txt"), "`--motion` must end in .safetensors"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(files, tmp_path, capsys, extra, message):
    assert talk(files, tmp_path / "out.mp4", *extra) == 2
    said = capsys.readouterr()
    assert said.out == ""
    last = said.err.replace("\r", "\n").strip().splitlines()[-1]
    assert last.startswith("vasa-hf: error: ") and message in last
    assert os.listdir(tmp_path) == []


LONG = "a" * 300 + ".mp4"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("talk", "nowhere.png", "{voice}", "-o", "{out}"), "`image` must be an existing file, got 'nowhere.png'"),
        (("talk", "{image}", "nowhere.wav", "-o", "{out}"), "`audio` must be an existing file, got 'nowhere.wav'"),
        (("talk", "{voice}", "{voice}", "-o", "{out}", "--model", "{model}"), "`image` must be an image file"),
        (("talk", "{image}", "{image}", "-o", "{out}", "--model", "{model}"), "`audio` must hold "),
        (("talk", "{grey}", "{voice}", "-o", "{out}", "--model", "{model}"), "`image` must show a face, but none was"),
        (("talk", "{image}", "{voice}", "-o", "{out}.avi"), "`--output` must end in .mp4"),
        (("talk", "{image}", "{voice}", "-o", "{out}/no/out.mp4"), "`--output` must lie in an existing folder"),
        (("talk", "{image}", "{voice}", "-o", "{folder}"), "`--output` must be a file that can be written"),
        (("talk", "{image}", "{voice}", "-o", LONG), "File name too long"),
        (("talk", "{image}", "{voice}", "-o", "{out}", "--motion", "/dev/full"), "`--motion` must end in .safetensors"),
        (("crop", "{image}", "--device", "cuda:99"), "`--device` must be available"),
        (("bench", "--device", "cuda:99"), "`--device` must be available"),
        (("talk", "{image}", "{voice}", "-o", "{out}", "--model", "{model}/nothing"), "must be an embedded model"),
        (("crop", "nowhere.png"), "`image` must be an existing file"),
        (("inspect", "nowhere.mp4"), "`video` must be an existing file"),
        (("bench", "--threads", "0"), "`--threads` must be a whole number in [1, "),
    ],
)
def test_bad_files_are_one_line_and_exit_code_2(files, tmp_path, capsys, words, message):
    (files / "folder.mp4").mkdir(exist_ok=True)
    places = {
        "folder": files / "folder.mp4",
        "image": files / "me.png",
        "grey": files / "grey.png",
        "voice": files / "voice.wav",
        "model": files / "model",
    }
    assert main([word.format(out=tmp_path / "out.mp4", **places) for word in words]) == 2
    last = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]
    assert last.startswith("vasa-hf: error: ") and message in last
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "words",
    [
        ("talk", "a.png", "a.wav", "-o", "a.mp4", "--gaze", "0,0", "--gaze", "0.1,0"),
        ("talk", "a.png", "a.wav", "-o", "a.mp4", "--output", "b.mp4"),
        ("talk3d", "mara", "a.wav", "-o", "a.mp4", "--camera", "orbit", "--camera", "fixed"),
        ("bench", "--threads", "1", "--threads", "2"),
    ],
)
def test_an_option_that_is_given_twice_is_reported(capsys, words):
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 2 and "is given twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("prepare", "--check", "a", "--workers", "2"), "`--workers` has no effect with --check"),
        (("prepare", "--unpack", "a", "-o", "b", "--crf", "20"), "`--crf` has no effect with --unpack"),
        (("eval", "--output", "a", "--remake", "--data", "b"), "`--data` has no effect with --remake"),
        (("fit", "{image}", "-o", "a", "--set", "size=64", "--set", "size=32"), "`--set` must give each setting once"),
        (
            ("animate", "{image}", "{image}", "-o", "a.mp4", "--driving-face", "0", "--driving-box", "1,2,3,4"),
            "`--driving-face` has no effect with --driving-box",
        ),
        (("crop", "{image}", "--face", "0", "--box", "1,2,3,4"), "`--face` has no effect with --box"),
    ],
)
def test_an_option_without_effect_is_reported(files, capsys, words, message):
    assert main([word.format(image=files / "me.png") for word in words]) == 2
    assert message in capsys.readouterr().err


def test_unknown_commands_and_help(capsys):
    assert main([]) == 0 and "usage: vasa-hf" in capsys.readouterr().out
    for words, code in ((["dance"], 2), (["--help"], 0), (["--version"], 0)):
        with pytest.raises(SystemExit) as exit_:
            main(words)
        assert exit_.value.code == code
    said = capsys.readouterr()
    assert "vasa-hf 0." in said.out and "invalid choice: 'dance'" in said.err
    for command in ("talk", "demo", "animate", "crop", "info", "bench", "inspect"):
        with pytest.raises(SystemExit) as exit_:
            main([command, "--help"])
        assert exit_.value.code == 0
        text = capsys.readouterr().out
        assert re.search(rf"examples?:\n  vasa-hf {command}", text), command


def test_demo_needs_nothing(files, tmp_path, capsys):
    """The portrait and the voice come with the package; here with a tiny model, which would not find the face."""
    out = tmp_path / "demo.mp4"
    box = ("--box", "150,60,300,260", "--steps", "1", "--model", str(files / "model"))
    assert main(["demo", "-o", str(out), *box]) == 0
    assert capsys.readouterr().out == f"{out}\n" and len(list(read_video(out))) == 160


def test_doubtful_input_is_noted_and_used(files, tmp_path, capsys):
    Image.fromarray(make_image()).resize((2112, 2304)).save(tmp_path / "large.bmp")
    save_wav(tmp_path / "silent.wav", np.zeros(8000, np.float32), 16_000)
    words = ["talk", tmp_path / "large.bmp", tmp_path / "silent.wav", "-o", tmp_path / "out.mp4", "--steps", "1"]
    assert main([*map(str, words), "--box", "400,400,1400,1500", "--model", str(files / "model")]) == 0
    err = capsys.readouterr().err
    assert "vasa-hf: note: The image of 2112x2304 pixels is shrunk to 1760x1920." in err
    assert err.count("vasa-hf: note: `audio` is silent") == 1


@has_analyzer
def test_the_embedded_weights_move_alike_for_the_same_seed(tmp_path):
    voice, rate = load_audio(PORTRAIT.parent / "voice.flac")
    save_wav(tmp_path / "voice.wav", voice[:, : rate // 2], rate)
    motions = []
    for name in ("a", "b"):
        words = [PORTRAIT, tmp_path / "voice.wav", "-o", tmp_path / f"{name}.mp4", "--seed", "1", "--steps", "3"]
        assert main(["talk", *map(str, words), "--motion", str(tmp_path / f"{name}.safetensors")]) == 0
        motions.append(load_motion(tmp_path / f"{name}.safetensors")[0])
    assert motions[0].shape == (1, 13, 34) and (motions[0] == motions[1]).all()
    frames = [np.stack(list(read_video(tmp_path / f"{name}.mp4"))) for name in ("a", "b")]
    assert (frames[0] == frames[1]).all()


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_leaves_nothing_behind(files, tmp_path, number, code):
    save_wav(tmp_path / "long.wav", make_audio(120), 16_000)
    words = ["talk", files / "me.png", tmp_path / "long.wav", "-o", tmp_path / "out.mp4", "--model", files / "model"]
    words += ["--box", "20,20,70,76", "--steps", "1", "--size", "64"]
    command = [sys.executable, "-m", "vasa_hf.cli", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # A shell that runs the tests in the background has its children ignore Ctrl-C.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=listen
    )
    deadline = time.monotonic() + 300
    while len(os.listdir(tmp_path)) == 1 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)  # until the video is being written, in a folder next to its place
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert os.listdir(tmp_path) == ["long.wav"]
    assert "Traceback" not in err


@has_analyzer
def test_crop_finds_the_face(tmp_path, capsys):
    out, seen = tmp_path / "face.png", tmp_path / "seen.png"
    assert main(["crop", str(PORTRAIT), "-o", str(out), "--preview", str(seen), "--size", "128", "--json"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[:2] == [str(out), str(seen)]
    found = json.loads(lines[2])
    x0, y0, x1, y1 = found["faces"][0]["box"]
    assert 100 < x0 < x1 < 350 and 20 < y0 < y1 < 330  # the astronaut's face in her 512 x 512 image
    assert Image.open(out).size == (128, 128) and Image.open(seen).size == Image.open(PORTRAIT).size
    assert main(["crop", str(PORTRAIT)]) == 0
    assert "face 0: score" in capsys.readouterr().out
    assert main(["crop", str(PORTRAIT), "--face", "7"]) == 2
    assert "`--face` must be 0 to" in capsys.readouterr().err


@has_analyzer
def test_crop_tells_faces_that_cannot_be_animated(tmp_path, capsys):
    """The real analyzer on the real portrait, spoilt."""
    portrait = Image.open(PORTRAIT).convert("RGB")
    pair = Image.new("RGB", (800, 512), (90, 90, 90))
    pair.paste(portrait, (0, 0))
    pair.paste(portrait.crop((100, 0, 388, 400)).resize((216, 300)), (550, 100))
    pair.save(tmp_path / "pair.png")
    assert main(["crop", str(tmp_path / "pair.png"), "--json"]) == 0
    said = capsys.readouterr()
    sides = [max(x1 - x0, y1 - y0) for x0, y0, x1, y1 in (face["box"] for face in json.loads(said.out)["faces"])]
    assert len(sides) == 2 and sides[0] > sides[1]
    assert "vasa-hf: note: 2 faces were found" in said.err and "the largest is used" in said.err
    small = Image.new("RGB", (512, 512), (90, 90, 90))
    small.paste(portrait.resize((128, 128)), (200, 200))
    small.save(tmp_path / "small.png")
    portrait.crop((210, 0, 512, 512)).save(tmp_path / "half.png")
    for name, message in (
        ("small", "of at least 32 pixels, but it has only"),
        ("half", "must show the whole face, but"),
    ):
        assert main(["crop", str(tmp_path / f"{name}.png")]) == 2, name
        assert message in capsys.readouterr().err


@has_analyzer
def test_crop_tells_a_image_without_a_face(tmp_path, capsys):
    Image.fromarray(np.full((200, 200, 3), 128, np.uint8)).save(tmp_path / "grey.png")
    assert main(["crop", str(tmp_path / "grey.png"), "-o", str(tmp_path / "out.png")]) == 2
    assert "`image` must show a face, but none was found" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["grey.png"]


def test_info_tells_versions_weights_and_devices(capsys):
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["vasa_hf"] and facts["packages"]["torch"] and "cpu" in facts["devices"]
    assert set(facts["weights"]) == set(EMBEDDED) and Path(facts["ffmpeg"]).exists()
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    assert "vasa-small" in said and "ffmpeg" in said


@pytest.mark.parametrize(
    ("line", "expected"),
    [("vasa-hf insp", "inspect"), ("vasa-hf talk --emo", "--emotion"), ("vasa-hf talk --system ", "moda")],
)
def test_a_shell_completes_commands_options_and_choices(tmp_path, line, expected):
    pytest.importorskip("argcomplete")
    asked = {
        "_ARGCOMPLETE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
        "_ARGCOMPLETE_IFS": " ",
    }
    asked["_ARGCOMPLETE_STDOUT_FILENAME"] = str(tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-m", "vasa_hf.cli"], cwd=ROOT, env={**os.environ, **asked}, capture_output=True
    )
    assert done.returncode == 0 and expected in (tmp_path / "out").read_text().split()


def test_inspect_tells_marked_from_unmarked(files, tmp_path, capsys):
    for name, extra in (("marked.mp4", ()), ("plain.mp4", ("--no-provenance",))):
        assert talk(files, tmp_path / name, *extra) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "marked.mp4"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["manifest"]["synthetic"] is True and facts["found"] is True and facts["c2pa"] is None
    assert main(["inspect", str(tmp_path / "plain.mp4")]) == 0
    said = capsys.readouterr().out
    assert "manifest  none" in said and "threshold" in said and "proves nothing" in said
    # A picture, as somebody may cut out of a video.
    for picture, is_marked in ((Image.open(PORTRAIT), False), (Image.fromarray(embed_mark(portrait_array())), True)):
        picture.save(tmp_path / "a.jpg", quality=70)
        assert main(["inspect", str(tmp_path / "a.jpg"), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["marked"] is facts["found"] is is_marked and facts["manifest"] is None
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:300])
    assert main(["inspect", str(tmp_path / "a.jpg")]) == 2 and "`video` must be a whole" in capsys.readouterr().err


@has_analyzer
def test_inspect_asks_the_forgery_detector(files, tmp_path, capsys):
    """With random weights: the face is found and judged, and the verdict is the detector's own."""
    torch.manual_seed(0)
    model = ForgeryDetector(image_size=32, widths=(8, 16)).eval()
    model.save_pretrained(tmp_path / "detector")
    face, grey = Image.open(PORTRAIT).convert("RGB").resize((128, 128)), Image.new("RGB", (128, 128), "gray")
    for name, picture, count in (("face.mp4", face, 20), ("grey.mp4", grey, 20), ("short.mp4", face, 5)):
        with VideoWriter(tmp_path / name, 25, picture.size) as writer:
            for _ in range(count):
                writer.write(np.asarray(picture))
    inspect = ["inspect", "--detector", str(tmp_path / "detector")]
    assert main([*inspect, str(tmp_path / "face.mp4"), "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)["detector"]
    assert verdict["windows"] == 2 and 0 < verdict["probability"] < 1
    with torch.no_grad():
        model.bias += 100
    model.save_pretrained(tmp_path / "detector")
    assert main([*inspect, str(tmp_path / "face.mp4")]) == 0
    assert "detector  100% synthetic, of 2 windows; an estimate, not a proof" in capsys.readouterr().out
    for name, said in (("grey.mp4", "no face"), ("short.mp4", "no face"), ("a.png", "it judges videos")):
        face.save(tmp_path / "a.png")
        assert main([*inspect, str(tmp_path / name)]) == 0 and said in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "face.mp4"), "--detector", "none", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["detector"] is None


def portrait_array():
    return np.asarray(Image.open(PORTRAIT).convert("RGB"))


def test_talk_signs_with_the_certificate_that_is_given(files, tmp_path, capsys, monkeypatch):
    pytest.importorskip("c2pa")
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives.asymmetric import ec

    from tests.testing_utils.certificates import write_chain

    write_chain(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    certificate, key, out = (str(tmp_path / name) for name in ("cert.pem", "key.pem", "out.mp4"))
    assert talk(files, out, "--c2pa-cert", certificate) == 2
    assert "`--c2pa-key` must be given" in capsys.readouterr().err
    assert talk(files, out, "--c2pa-cert", certificate, "--c2pa-key", key, "--no-provenance") == 2
    capsys.readouterr()
    assert talk(files, out, "--c2pa-cert", certificate, "--c2pa-key", certificate) == 2
    assert "`--c2pa-key` must be a PKCS#8 key" in capsys.readouterr().err
    assert not os.path.exists(out)
    monkeypatch.setenv("VASA_HF_C2PA_CERT", certificate)
    monkeypatch.setenv("VASA_HF_C2PA_KEY", key)
    assert talk(files, out) == 0
    capsys.readouterr()
    assert main(["inspect", out, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["c2pa"]
    assert found["state"] == "Valid" and found["signer"] == "Test Studio" and found["synthetic"] is True
    assert talk(files, out, "--no-provenance") == 0  # the environment asks for nothing then
    assert main(["inspect", out]) == 0 and "c2pa      none" in capsys.readouterr().out


@pytest.mark.e2e
@has_analyzer
def test_bench_compares_threads_in_fresh_processes(files, capsys):
    # A tiny model with the real analyzer: the demo's portrait has a face to find.
    import shutil

    shutil.rmtree(files / "bench", ignore_errors=True)
    shutil.copytree(files / "model", files / "bench")
    shutil.rmtree(files / "bench" / "face_analyzer")
    shutil.copytree(embedded_path("vasa-small") / "face_analyzer", files / "bench" / "face_analyzer")
    words = ["bench", "--model", str(files / "bench"), "--seconds", "1.2", "--steps", "1", "--threads", "1,2", "--json"]
    assert main(words) == 0
    results = json.loads(capsys.readouterr().out)
    assert [result["threads"] for result in results] == [1, 2]
    for result in results:
        assert set(result["frames_per_second"]) == set(bench.STAGES)
        assert all(rate > 0 for rate in result["frames_per_second"].values())
        assert result["real_time_factor"] == pytest.approx(result["total_seconds"] / 1.2)
        assert 0 < result["portrait_seconds"] < result["first_frame_seconds"]
        assert result["peak_memory_mb"] > 50
    said = bench.format_results(results)
    assert "real-time factor" in said and "peak memory" in said and len(said.splitlines()[1].split()) == 3


@pytest.mark.e2e
def test_bench_tells_what_failed(tmp_path, capsys):
    assert main(["bench", "--model", str(tmp_path), "--seconds", "1"]) == 2
    assert "failed" in capsys.readouterr().err


def test_video_of_the_demo_is_readable_by_others(files, tmp_path):
    """The frames are upright RGB images of the right number, whatever reads them."""
    assert talk(files, tmp_path / "out.mp4", "--seed", "1") == 0
    frames = list(read_video(tmp_path / "out.mp4"))
    assert len(frames) == 23 and frames[0].shape == (32, 32, 3)


def test_convert_writes_only_what_fits(tmp_path, capsys):
    torch.save({"netcnnaud.0.weight": torch.zeros(64, 1, 3, 3)}, tmp_path / "part.model")
    assert main(["convert", "syncnet", str(tmp_path / "part.model"), str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "`source` does not fit SyncNet, nothing was written" in err and not (tmp_path / "out").exists()
    assert main(["convert", "lpips", str(tmp_path / "part.model"), str(tmp_path / "out")]) == 2
    assert "`source` must be 2 file(s) for lpips, got 1" in capsys.readouterr().err
