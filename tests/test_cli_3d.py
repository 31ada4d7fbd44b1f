"""Commands of avatars: words, files, exit codes and streams, with a tiny real model and a made-up avatar."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.testing_utils.avatars import make_avatar
from tests.testing_utils.pipelines import make_audio, make_image, make_vasa1_components
from vasa_hf import Vasa3DAvatarPipeline, load_motion
from vasa_hf.bench import avatars as bench_3d
from vasa_hf.cli import avatars, main
from vasa_hf.cli.measure import _load_evaluated
from vasa_hf.media import VideoReader, read_provenance, save_wav

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny pipeline with one avatar of its own, another avatar in a folder, an image and audio."""
    folder = tmp_path_factory.mktemp("cli3d")
    pipe = Vasa3DAvatarPipeline(**make_vasa1_components())
    pipe.add_avatar("anna", make_avatar(0))
    pipe.save_pretrained(folder / "model")
    make_avatar(1).save_pretrained(folder / "me")
    Image.fromarray(make_image()).save(folder / "me.png")
    save_wav(folder / "voice.wav", make_audio(0.5), 16_000)
    return folder


def talk3d(files, out, *extra, avatar="anna"):
    usual = {"--model": files / "model", "--steps": "2", "--size": "48"}
    words = [word for name, value in usual.items() if name not in extra for word in (name, value)]
    return main(list(map(str, ("talk3d", avatar, files / "voice.wav", "-o", out, *words, *extra))))


def test_talk3d_writes_a_video_and_tells_only_its_name(files, tmp_path, capsys):
    out, motion = tmp_path / "out.mp4", tmp_path / "m.safetensors"
    assert talk3d(files, out, "--seed", "1", "--fps", "30", "--motion", motion) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n" and "15/15" in said.err and "seed 1" in said.err
    video = VideoReader(out)
    assert video.size == (48, 48) and video.fps == 30 and len(list(video)) == 15
    assert read_provenance(out)["model"] == "model" and load_motion(motion)[0].shape == (1, 15, 10)
    assert sorted(os.listdir(tmp_path)) == ["m.safetensors", "out.mp4"]


def test_talk3d_hands_every_option_on(files, tmp_path):
    def frames(*extra, avatar="anna"):
        assert talk3d(files, tmp_path / "out.mp4", "--seed", "1", "--crf", "4", *extra, avatar=avatar) == 0
        return np.stack(list(VideoReader(tmp_path / "out.mp4"))).astype(float)

    plain = frames()
    assert np.abs(frames() - plain).max() == 0
    (tmp_path / "path.json").write_text("[[0, 0, 0, 1], [0.3, 40, 10, 1.2]]")
    for extra in (
        ("--camera", "orbit"),
        ("--camera", tmp_path / "path.json"),
        ("--background", "0.1,0.2,0.9"),
        ("--background", "black"),
        ("--gaze", "-0.5,0.1"),
        ("--distance", "1.5"),
        ("--emotion", "happy=1"),
        ("--head-motion", "0"),
        ("--guidance", "audio=3"),
        ("--steps", "3"),
    ):
        assert np.abs(frames(*extra) - plain).max() > 8, extra
    blue = frames("--background", "0.1,0.2,0.9")[0, 0, 0]
    assert np.abs(blue - np.array([0.1, 0.2, 0.9]) * 255).max() < 8
    # From the front both begin alike; then the orbit goes aside.
    orbit = np.abs(frames("--camera", "orbit") - plain).mean((1, 2, 3))
    assert orbit[0] < 1 < orbit[-1]
    assert np.abs(frames(avatar=files / "me") - plain).mean() > 3
    frames("--no-provenance")
    assert read_provenance(tmp_path / "out.mp4") is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("talk3d", "nobody", "{voice}", "-o", "{out}"), "`avatar` must be one of ['anna']"),
        (("talk3d", "{png}", "{voice}", "-o", "{out}"), "`avatar` must be one of ['anna']"),
        (("talk3d", "anna", "no.wav", "-o", "{out}"), "`audio` must be an existing file, got 'no.wav'"),
        (("talk3d", "anna", "{voice}", "-o", "{out}.avi"), "`--output` must end in .mp4"),
        (("talk3d", "anna", "{voice}", "-o", "{out}", "--camera", "spiral"), "`--camera` must be fixed, orbit or"),
        (("talk3d", "anna", "{voice}", "-o", "{out}", "--camera", "{png}"), "`--camera` must be JSON, but"),
        (("talk3d", "anna", "{voice}", "-o", "{out}", "--camera", "{dict}"), "`--camera` must hold a list"),
        (("talk3d", "anna", "{voice}", "-o", "{out}", "--camera", "{near}"), "`--camera` must stay outside"),
        (("talk3d", "anna", "{voice}", "-o", "{out}", "--camera", "{short}"), "`--camera` must be keyframes"),
        (("talk3d", "anna", "{voice}", "-o", "{out}", "--background", "pink"), "`--background` must be R,G,B"),
        (("talk3d", "anna", "{voice}", "-o", "{out}", "--background", "1,2,3"), "`--background` must be red, gr"),
        (("talk3d", "anna", "{voice}", "-o", "{out}", "--size", "1"), "`--size` must"),
        (("talk3d", "anna", "{voice}", "-o", "{out}", "--seed", "-1"), "`--seed` must be a whole number"),
        (("talk3d", "anna", "{voice}", "-o", "{out}", "--emotion", "hungry=1"), "`--emotion` knows the names"),
        (("view", "anna", "--port", "70000"), "`--port` must lie in"),
        (("view", "anna", "--audio", "no.wav"), "`--audio` must be an existing file"),
        (("view", "nobody", "--port", "0"), "`avatar` must be one of ['anna']"),
        (("view", "anna", "--port", "0", "--size", "5"), "`--size` must lie in [64, 2048]"),
        (("fit", "no.png", "-o", "{out}"), "`image` must be an existing file, got 'no.png'"),
        (("fit", "{png}", "-o", "{out}", "--audio", "no.wav"), "`--audio` must be an existing file"),
        (("fit", "{png}", "-o", "{png}"), "`--output` must be a folder, got the file"),
        (("fit", "{png}", "-o", "{folder}"), "`--output` must be a new or empty folder"),
        (("fit", "{png}", "-o", "{out}", "--resume"), "`--resume` needs a fit that was stopped"),
        (("fit", "{png}", "-o", "{stopped}"), "`--output` holds a fit that was stopped: add --resume"),
        (("fit", "{png}", "-o", "{out}", "--set", "iterations"), "`--set` must be NAME=VALUE"),
        (("fit", "{png}", "-o", "{out}", "--set", "beauty=1"), "`--set` must be fields of AvatarPreset"),
        (("bench", "3d", "--seconds", "3"), "`--seconds` has no effect with '3d'"),
        (("bench", "--avatar", "anna"), "`--avatar` has no effect with '2d'"),
    ],
)
def test_bad_words_are_one_line_and_exit_code_2(files, tmp_path, capsys, words, message):
    places = {"voice": files / "voice.wav", "png": files / "me.png", "folder": files}
    for name, text in (("dict", "{}"), ("near", "[[0, 0, 0, 0.01]]"), ("short", "[[0, 1]]")):
        places[name] = tmp_path / f"{name}.json"
        places[name].write_text(text)
    places["stopped"] = tmp_path / "stopped"
    (places["stopped"] / "fit").mkdir(parents=True)
    (places["stopped"] / "fit" / "settings.json").write_text("{}")
    before = sorted(os.listdir(tmp_path))
    words = [word.format(out=tmp_path / "out.mp4", **places) for word in words]
    assert main([*words, "--model", str(files / "model")]) == 2
    said = capsys.readouterr()
    last = said.err.replace("\r", "\n").strip().splitlines()[-1]
    assert last.startswith("vasa-hf: error: ") and message in last and said.out == ""
    assert sorted(os.listdir(tmp_path)) == before


def test_fit_hands_every_option_on_and_shows_how_far_it_is(files, tmp_path, capsys, monkeypatch):
    """The fit itself is tested where it is written; it takes minutes."""
    told = {}

    def fit(self, image, preset="fast", **options):
        told.update(options, image=image, preset=preset)
        progress = SimpleNamespace(stage="frames", done=3, total=9, logs={}, preview=None)
        options["on_progress"](progress)
        changed = {"stage": "fit", "done": 5, "logs": {"recon": 0.125}, "preview": tmp_path / "p.png"}
        options["on_progress"](SimpleNamespace(**{**vars(progress), **changed}))

    monkeypatch.setattr(Vasa3DAvatarPipeline, "fit", fit)
    words = ["fit", files / "me.png", "-o", tmp_path / "a", "--preset", "paper", "--face", "1", "--seed", "7"]
    words += [
        "--audio",
        files / "voice.wav",
        "--audio",
        files / "voice.wav",
        "--set",
        "iterations=20",
        "--set",
        "sds=x/y",
    ]
    assert main([*map(str, words), "--model", str(files / "model")]) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'a'}\n"
    for text in ("frames", "3/9", "5/9", "recon=0.125", f"vasa-hf: preview: {tmp_path / 'p.png'}"):
        assert text in said.err
    assert told["generator"].initial_seed() == 7 and told["output"] == str(tmp_path / "a")
    assert told["audios"] == [str(files / "voice.wav")] * 2 and told["videos"] is None
    assert (told["preset"], told["face"], told["iterations"], told["sds"]) == ("paper", 1, 20, "x/y")


def test_a_stopped_fit_goes_on_where_it_is_asked_to(files, tmp_path, monkeypatch):
    folder = tmp_path / "a"
    (folder / "fit").mkdir(parents=True)
    (folder / "fit" / "settings.json").write_text("{}")
    outputs = []
    monkeypatch.setattr(Vasa3DAvatarPipeline, "fit", lambda self, image, **options: outputs.append(options["output"]))
    words = ["fit", str(files / "me.png"), "-o", str(folder), "--model", str(files / "model"), "--resume"]
    assert main(words) == 0 and outputs == [str(folder)]


def test_presets_are_those_of_the_fit():
    from vasa_hf.training.avatar.presets import PRESETS

    assert set(avatars.PRESETS) == set(PRESETS)


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_view_serves_until_ctrl_c(files):
    pytest.importorskip("viser")
    words = ["view", files / "me", "--model", files / "model", "--port", "0", "--audio", files / "voice.wav"]
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell in the background has it ignored
    process = subprocess.Popen(
        [sys.executable, "-m", "vasa_hf.cli", *map(str, words), "--steps", "1"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen,
    )
    url = process.stdout.readline().strip()
    assert url.startswith("http://localhost:"), process.communicate()[1]
    assert b"<html" in urllib.request.urlopen(url, timeout=60).read().lower()
    port = url.rpartition(":")[2]
    second = subprocess.run(
        [sys.executable, "-m", "vasa_hf.cli", *map(str, words[:4]), "--port", port],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert second.returncode == 2 and "`--port` must be free" in second.stderr
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out == "" and "Traceback" not in err


@pytest.mark.e2e
def test_bench_3d_measures_in_a_fresh_process(files, capsys):
    words = ["bench", "3d", "--model", str(files / "model"), "--size", "48", "--steps", "1", "--gaussians", "12000"]
    assert main([*words, "--threads", "2", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert (result["threads"], result["num_gaussians"], result["output_size"]) == (2, 12_000, 48)
    assert set(result["frames_per_second"]) == {"deformation", "rendering", "both"}
    assert all(rate > 0 for rate in result["frames_per_second"].values())
    assert 0 < result["first_frame_seconds"] <= result["first_frame_cold_seconds"]
    assert result["first_frame_short_seconds"] > 0 and result["peak_memory_mb"] > 50
    said = bench_3d.format_results([result, {**result, "threads": 1}])
    assert "both, frames/s" in said and "fit, s" not in said and len(said.splitlines()[1].split()) == 3
    assert "fit, s" in bench_3d.format_results([{**result, "fit_seconds": 250.0}])
    assert main(["bench", "3d", "--model", str(files / "me")]) == 2
    assert "failed" in capsys.readouterr().err


def test_an_avatar_covered_again_moves_as_before():
    avatar = make_avatar(2)
    assert bench_3d.resize_avatar(avatar, len(avatar.triangles)) is avatar
    more = bench_3d.resize_avatar(avatar, 14_000).eval()
    assert more.config.num_gaussians == len(more.means) == 14_000
    motion = avatar.own_motion[None] + 0.1 * torch.randn(1, 10, generator=torch.Generator().manual_seed(0))
    for mine, other in zip(avatar.head_parameters(motion), more.head_parameters(motion), strict=True):
        torch.testing.assert_close(mine, other)

    def middle(a):
        return a(motion).gaussians.means[0].mean(0)

    assert (middle(avatar) - middle(more)).norm() < 1.0  # centimetres
    assert (avatar.colors.mean(0) - more.colors.mean(0)).abs().max() < 0.1


def test_eval_finds_the_avatars_of_a_pipeline(files, tmp_path):
    options = SimpleNamespace(model=str(files / "model"), avatars=None, fit=None, device="cpu", threads=None)
    pipe, sitters, model, eyes = _load_evaluated(options)
    assert type(pipe).__name__ == "VasaTalkingFacePipeline" and model == str(files / "model") and eyes is None
    assert list(sitters) == ["anna"]
    with pytest.raises(ValueError, match="portrait.png is not in the avatar's folder"):
        sitters["anna"]()
    options.avatars = f"anna,{files / 'me'}/,{tmp_path / 'x' / 'me'}"
    assert list(_load_evaluated(options)[1]) == ["anna", "me", str(tmp_path / "x" / "me")]
    with pytest.raises(ValueError, match="`avatars` needs --pipeline vasa3d"):
        _load_evaluated(SimpleNamespace(model="vasa-small", avatars="anna", fit=None, device="cpu", threads=None))


def test_help_has_examples(capsys):
    for command in ("fit", "talk3d", "view"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert f"examples:\n  vasa-hf {command}" in capsys.readouterr().out
