"""The whole fit, with the embedded VASA-1 and the portrait that comes with the package."""

import json
import logging
import pickle
from pathlib import Path

import pytest
import torch

import vasa_hf
from tests.testing_utils.flame_format import full_size_arrays
from tests.training.avatar.test_losses import make_text_to_image
from vasa_hf import Vasa3DGaussianAvatar
from vasa_hf.convert.flame import convert_flame
from vasa_hf.gaussians.render import render
from vasa_hf.training.avatar.fit import fit_avatar
from vasa_hf.training.avatar.presets import PRESETS, choose_preset
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
    kept = avatar.state_dict()
    assert loaded.state_dict().keys() == kept.keys()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in loaded.state_dict().items())
    motion = avatar.own_motion[None]
    with torch.no_grad():
        # Centimetres, up to a metre: other places in memory, other sums.
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


@pytest.fixture(scope="module")
def flame(tmp_path_factory):
    """A head of FLAME's full size, converted of a file in the layout of the official ones."""
    folder = tmp_path_factory.mktemp("flame")
    (folder / "generic_model.pkl").write_bytes(pickle.dumps(full_size_arrays()))
    convert_flame(folder / "generic_model.pkl", folder / "flame.safetensors", version="2020")
    return str(folder / "flame.safetensors")


@pytest.mark.parametrize("from_scratch", [False, True])
def test_a_fit_on_flame_with_and_without_a_start_on_the_portrait(pipe, flame, tmp_path, caplog, from_scratch):
    changes = {"head": flame, "from_scratch": from_scratch, "num_gaussians": 18_000, "weight_perceptual": 0.0}
    if from_scratch:  # as long as it takes to see that random networks and grey Gaussians learn
        changes |= {"iterations": 25, "avatar": {"hidden_size": 32}, "ssim_every": 0, "lr_colors": 0.03}
    with caplog.at_level(logging.INFO):
        avatar = fit(pipe, tmp_path / "avatar", **changes)
    assert "flame" not in caplog.text.lower()  # nothing to ask for
    assert ("start is laid on the portrait" in caplog.text) != from_scratch
    loaded = Vasa3DGaussianAvatar.from_pretrained(tmp_path / "avatar")
    assert loaded.config.head_name == "FLAME 2020" and len(loaded.head.pose_basis) == 36
    assert len(loaded.head.template) > 5023  # with teeth
    log = [json.loads(line) for line in (tmp_path / "avatar" / "fit" / "log.jsonl").read_text().splitlines()]
    recon = [line["recon"] for line in log if "recon" in line]
    if from_scratch:
        assert loaded.config.pose_prior is False and not torch.equal(avatar.colors[0], avatar.colors[-1])
        assert sum(recon[-5:]) < 0.95 * sum(recon[:5])  # hair and shoulders take longer
    else:
        assert recon[0] < 0.15  # it looks like the portrait already


def test_the_paper_preset_says_what_it_lacks(pipe, tmp_path, caplog):
    """Loudly, before any work: networks, head and start; nothing where they are given."""
    missing = {"image": torch.full((3, 200, 200), 0.5), "output": tmp_path / "avatar"}
    with pytest.raises(ValueError, match="`image`"):
        fit_avatar(pipe, preset="paper", **missing)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    for name in ("`lpips`", "`sds`", "`head`", "`from_scratch`", "head is built-in"):
        assert name in caplog.text
    paper = choose_preset("paper")
    assert not (paper.rebase_videos or paper.limit_turn or paper.sweep_share)  # the clips' own latents, §3.2
    assert PRESETS["fast"].rebase_videos and PRESETS["fast-gpu"].limit_turn


def test_bad_input_writes_nothing(pipe, tmp_path):
    nobody = torch.full((3, 200, 200), 0.5)
    for arguments, name in (
        ({"image": nobody}, "`image`"),
        ({"image": tmp_path / "none.png"}, "`image`"),
        ({"audios": [tmp_path / "none.wav"]}, "`audios`"),
        ({"videos": [tmp_path / "none.mp4"]}, "`videos`"),
        ({"lpips": str(tmp_path)}, "`lpips`"),
        ({"head": str(tmp_path)}, "`head`"),
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
