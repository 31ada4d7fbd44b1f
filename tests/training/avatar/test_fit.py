"""The whole fit, with the embedded VASA-1 and the portrait that comes with the package."""

import logging
from pathlib import Path

import pytest
import torch

import vasa_hf
from tests.training.avatar.test_losses import make_text_to_image
from vasa_hf import Vasa3DGaussianAvatar
from vasa_hf.gaussians.render import render
from vasa_hf.training.avatar.fit import fit_avatar
from vasa_hf.training.avatar.presets import PRESETS
from vasa_hf.training.loop import checkpoints
from vasa_hf.training.recipes import gaussian_avatar
from vasa_hf.training.run import main

PORTRAIT = Path(vasa_hf.__file__).parent / "assets" / "portrait.jpg"
# A fit of seconds: 12 frames of motion, 8 of them seen, 6 iterations.
TINY = {
    "motion_minutes": 0.008,
    "motion_steps": 2,
    "num_frames": 8,
    "iterations": 6,
    "max_minutes": None,
    "checkpoint_every": 2,
    "preview_every": 0,
    "log_every": 1,
}


def fit(pipe, output, on_progress=None, seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    options = {"output": output, "generator": generator, "on_progress": on_progress}
    return fit_avatar(pipe, PORTRAIT, "fast", **{**options, **TINY, **changes})


@pytest.fixture(scope="module")
def whole(pipe, tmp_path_factory):
    """A fit in one go: its folder, what it returned and what it told."""
    output, told = tmp_path_factory.mktemp("whole") / "avatar", []
    return output, fit(pipe, output, told.append), told


class StoppedError(Exception):
    pass


def stop_at(stage, done):
    def on_progress(progress):
        if (progress.stage, progress.done) == (stage, done):
            raise StoppedError

    return on_progress


def test_a_fit_leaves_an_avatar_and_nothing_half_done(whole):
    output, avatar, told = whole
    assert sorted(file.name for file in output.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "fit",
        "portrait.png",
    ]
    assert [file.name for file in (output / "fit").iterdir()] == ["log.jsonl"]
    assert list(dict.fromkeys(report.stage for report in told)) == ["start", "motion", "frames", "fit"]
    assert [report.done for report in told if report.stage == "fit"] == [1, 2, 3, 4, 5, 6, 6]
    loaded = Vasa3DGaussianAvatar.from_pretrained(output)
    loaded.check_motion_space("vasa-small")
    motion = avatar.own_motion[None]
    with torch.no_grad():
        # Centimetres, up to a metre: float32 sums in another order differ by some 1e-4.
        torch.testing.assert_close(loaded(motion).gaussians.means, avatar(motion).gaussians.means, rtol=0, atol=5e-4)


def test_the_avatar_looks_like_the_portrait(pipe, whole):
    """From the front, over white: nearer to VASA-1's own picture of that motion than to the mirrored one, by far."""
    avatar = whole[1]
    portrait = pipe.prepare_portrait(PORTRAIT)
    frame = next(pipe.decode_frames(portrait, avatar.own_motion[None]))
    with torch.no_grad():
        shown = render(avatar(avatar.own_motion[None]).gaussians, avatar.portrait_camera, 256, (1.0, 1.0, 1.0))
    inside = (shown.alpha > 0.95).float()
    error = lambda other: float(((shown.color - other).abs() * inside).mean() / inside.mean())  # noqa: E731
    assert 0.1 < inside.mean() < 0.8
    assert error(frame) < 0.08 and error(frame) < 0.5 * error(frame.flip(-1))


@pytest.mark.parametrize(("stage", "done"), [pytest.param("frames", 8, marks=pytest.mark.slow), ("fit", 5)])
def test_an_interrupted_fit_ends_as_an_uninterrupted_one(pipe, whole, tmp_path, stage, done):
    output = tmp_path / "avatar"
    with pytest.raises(StoppedError):
        fit(pipe, output, stop_at(stage, done))
    assert not (output / "config.json").exists()  # nobody takes it for an avatar
    if stage == "fit":
        assert checkpoints(output / "fit")[-1].name == "checkpoint-00000004"
        with pytest.raises(ValueError, match="`output`.*preset"):
            fit(pipe, output, iterations=7)
        with pytest.raises(ValueError, match="`output`.*generator"):
            fit(pipe, output, seed=1)
    told = []
    resumed = fit(pipe, output, told.append)
    assert "motion" not in {report.stage for report in told} or stage == "frames"
    # Adam's steps are as large for small gradients as for large ones: float noise grows, to a small part of one step.
    atol = PRESETS["fast"].lr_means / 30
    for name, value in whole[1].state_dict().items():
        assert ((resumed.state_dict()[name] - value).abs() < atol).all(), name
    assert not checkpoints(output / "fit") and (output / "config.json").exists()


def test_bad_input_writes_nothing(pipe, tmp_path):
    nobody = torch.full((3, 200, 200), 0.5)
    for arguments, name in (
        ({"image": nobody}, "`image`"),
        ({"image": tmp_path / "none.png"}, "`image`"),
        ({"audios": [tmp_path / "none.wav"]}, "`audios`"),
        ({"videos": [tmp_path / "none.mp4"]}, "`videos`"),
        ({"lpips": str(tmp_path)}, "`lpips`"),
        ({"sds": str(tmp_path), "weight_sds": 1.0}, "`sds`"),
        ({"face": 3}, "`face`"),
        ({"num_gaussians": 100}, "`num_gaussians`"),
    ):
        with pytest.raises(ValueError, match=name):
            fit_avatar(**{"talking_face": pipe, "image": PORTRAIT, "output": tmp_path / "avatar", **TINY, **arguments})
        assert not (tmp_path / "avatar").exists()


def test_the_command(pipe, tmp_path, monkeypatch, capsys, caplog):
    """One iteration, with a text-to-image model on disk."""
    _, model = make_text_to_image(tmp_path / "sd")
    monkeypatch.setattr(
        "vasa_hf.pipelines.vasa_talking_face.VasaTalkingFacePipeline.from_pretrained", lambda name: pipe
    )
    monkeypatch.setattr(gaussian_avatar.logging, "basicConfig", lambda **options: None)
    settings = [f"{name}={'null' if value is None else value}" for name, value in TINY.items() if name != "iterations"]
    settings += ["iterations=1", "weight_sds=1.0"]
    with caplog.at_level(logging.INFO):
        arguments = [
            "gaussian_avatar",
            "--image",
            PORTRAIT,
            "--output",
            tmp_path / "avatar",
            "--seed",
            1,
            "--sds",
            model,
            "--device",
            "cpu",
        ]
        main([str(argument) for argument in [*arguments, "--set", *settings]])
    assert "fit 1/1, recon" in (out := capsys.readouterr().out) and ", sds " in out
    assert "face_recognizer" in caplog.text and "L_sds is off" not in caplog.text
    assert (tmp_path / "avatar" / "config.json").exists()
