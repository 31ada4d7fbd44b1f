import itertools
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from tests.models.test_gaussian_avatar_vasa3d import REST, tiny_head
from tests.training.avatar.test_losses import make_recognizer, make_text_to_image
from vasa_hf import Vasa3DGaussianAvatar
from vasa_hf.gaussians.render import render
from vasa_hf.geometry.cameras import Cameras
from vasa_hf.training.avatar.frames import AvatarFrames, render_anchors
from vasa_hf.training.avatar.loop import AvatarFit
from vasa_hf.training.avatar.losses import PerceptualDistance, ScoreDistillation
from vasa_hf.training.avatar.presets import choose_preset
from vasa_hf.training.avatar.start import AvatarStart
from vasa_hf.training.loop import checkpoints

SIZE, COUNT = 32, 24


def make_avatar(seed=0):
    config = {"motion_dim": 11, "motion_space": "tiny", "hidden_size": 16, "camera_distance_cm": 12.0}
    avatar = Vasa3DGaussianAvatar.from_head(tiny_head(), num_gaussians=60, **config)
    torch.manual_seed(seed)
    with torch.no_grad():
        avatar.motion_mean[:6] = torch.tensor(REST)
        avatar.motion_std[:6] = 0.1
        avatar.colors.copy_(torch.rand_like(avatar.colors))
        for layer in (avatar.motion_to_pose[-1], avatar.motion_to_expression[-1]):
            layer.weight.mul_(0.1)
            layer.bias.zero_()
    return avatar


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """What another avatar of the same head shows, in two shards."""
    folder = tmp_path_factory.mktemp("frames")
    truth = make_avatar(seed=7)
    backgrounds = torch.tensor([[0.9] * 3, [0.1] * 3])
    motions = torch.tensor([*REST, 0, 0, 0, 0, 0]) + 0.1 * torch.randn(COUNT, 11)
    background = torch.arange(COUNT) % 2
    with torch.no_grad():
        gaussians = truth(motions, deform=False).gaussians
        shown = render(gaussians, truth.portrait_camera, SIZE, backgrounds[background]).color
    pictures = (shown.clamp(0, 1) * 255).round().byte()
    for number, part in enumerate(torch.arange(COUNT).split(16)):
        shard = {"frames": pictures[part], "motions": motions[part], "background": background[part]}
        save_file(shard, folder / f"frames-{number:05d}.safetensors")
    about = {"order": "", "backgrounds": backgrounds.tolist(), "shards": [16, 8]}
    (folder / "index.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def distance(tmp_path_factory):
    return PerceptualDistance(recognizer=make_recognizer(tmp_path_factory.mktemp("recognizer")))


def make_preset(**changes):
    everything = {
        "size": SIZE,
        "iterations": 8,
        "sharpen_iterations": 4,
        "densify_from": 2,
        "densify_until": 6,
        "densify_every": 2,
        "max_gaussians": 70,
        "opacity_reset_every": 5,
        "sds_every": 3,
        "checkpoint_every": 0,
        "preview_every": 0,
        "log_every": 1,
    }
    return choose_preset("paper", **{**everything, **changes})


def make_fit(frames, distance, folder=None, avatar=None, sds=None, **changes):
    preset = make_preset(**changes)
    avatar = make_avatar() if avatar is None else avatar
    return AvatarFit(
        avatar, AvatarFrames(frames, seed=3), preset, Accelerator(cpu=True), folder, 3, None, distance, sds
    )


def error(avatar, frames, deform):
    dataset = AvatarFrames(frames)
    samples = [dataset[index] for index in range(COUNT)]
    motion, target, background = (torch.stack([s[n] for s in samples]) for n in ("motion", "frame", "background"))
    with torch.no_grad():
        gaussians = avatar(motion, deform=deform).gaussians
        shown = render(gaussians, avatar.portrait_camera, SIZE, background).color
    return float((shown - target).abs().mean())


def test_fitting_brings_both_gaussians_to_the_frames(frames, distance):
    """G' and G'' alike, since losses are on both."""
    before = make_avatar()
    changes = {"sharpen_iterations": 0, "densify_every": 0, "opacity_reset_every": 0, "lr_colors": 2e-2}
    fit = make_fit(frames, distance, iterations=60, **changes)
    after = fit.run()
    assert not after.training and fit.step == 60
    for deform in (False, True):
        assert error(after, frames, deform) < 0.5 * error(before, frames, deform)


def test_base_alone_for_the_first_row_of_table_1(frames, distance):
    changes = {"iterations": 60, "sharpen_iterations": 0, "densify_every": 0, "opacity_reset_every": 0}
    fit = make_fit(frames, distance, deform=False, **changes)
    avatar = fit.run()
    assert not any(p.any() for field in (avatar.deform_face, avatar.deform_neck) for p in field.out.parameters())
    assert error(avatar, frames, True) == pytest.approx(error(avatar, frames, False), abs=1e-6)
    assert error(avatar, frames, False) < error(make_avatar(), frames, False)


def test_every_loss_of_eq_8_is_there_when_it_should_be(frames, distance, tmp_path):
    _, folder = make_text_to_image(tmp_path / "sd")
    fit = make_fit(frames, distance, sds=ScoreDistillation(folder))
    seen = [set(fit.iterate()) for _ in range(12)]
    always = {"recon", "perceptual", "adversarial", "discriminator", "consist", "position", "scaling"}
    for step, names in enumerate(seen):
        assert names == always | ({"sds"} if step % 3 == 0 else set()) | ({"sharpen"} if step >= 8 else set()), step
    assert 60 < len(fit.avatar.means) <= 70  # densified between 2 and 6


def test_weights_of_zero_leave_losses_out(frames):
    off = {f"weight_{name}": 0.0 for name in ("perceptual", "adversarial", "sds", "consist", "sharpen")}
    fit = make_fit(frames, None, **off)
    assert set(fit.iterate()) == {"recon", "position", "scaling"}


@pytest.mark.parametrize("stop", [1, 5, 9])
def test_a_resumed_fit_ends_as_an_uninterrupted_one(frames, distance, tmp_path, stop):
    """Before, amid and after densification; discriminators, opacity reset, sharpening and the learning rate too."""
    whole = make_fit(frames, distance).run()

    first = make_fit(frames, distance, tmp_path)
    for _ in range(stop):
        first.iterate()
    first.save_checkpoint()
    (checkpoint,) = checkpoints(tmp_path)
    assert checkpoint.name == f"checkpoint-{stop:08d}"
    torch.manual_seed(99)  # nothing may hang on the global random numbers
    avatar = Vasa3DGaussianAvatar.from_pretrained(checkpoint / "avatar")
    second = make_fit(frames, distance, tmp_path, avatar)
    second.load_checkpoint(checkpoint)
    resumed = second.run()
    assert second.step == 12 and len(resumed.means) == len(whole.means)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_the_clock_ends_a_fit_with_the_learning_rate_at_its_end(frames, distance, monkeypatch, caplog):
    """A clock by which every iteration takes a second; 20 are allowed."""
    monkeypatch.setattr("vasa_hf.training.avatar.loop.time", SimpleNamespace(monotonic=itertools.count().__next__))
    fit = make_fit(frames, distance, iterations=10_000, sharpen_iterations=0, densify_every=0)
    fit.limit_minutes = 20 / 60
    fit.run()
    assert fit.step == 20 and fit.progress == pytest.approx(1.0)
    assert "20 of 10000 iterations" in caplog.text  # too few of them: said
    for group in fit.optimizer.param_groups:  # of the last iteration, 19 seconds after the first
        assert group["lr"] == pytest.approx(group["base_lr"] * fit.preset.final_lr_ratio ** (19 / 20))


def test_reports_previews_and_logs(frames, distance, tmp_path):
    reports = []
    fit = make_fit(frames, distance, tmp_path, preview_every=4, log_every=2)
    fit.on_progress = reports.append
    fit.run()
    assert [report.done for report in reports] == [2, 4, 6, 8, 10, 12, 12]
    assert [report.stage for report in reports[:3]] == ["fit"] * 3 and reports[-1].stage == "sharpen"
    assert {"recon", "perceptual"} <= set(reports[0].logs)
    assert reports[-1].preview == tmp_path / "preview-000012.png"
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 2 and lines[0]["recon"] == pytest.approx(reports[0].logs["recon"])


def test_hair_may_stay_away_from_its_triangle(frames, distance):
    """Gaussians that begin far out are not drawn in; those that begin near are, when they leave."""
    fit = make_fit(frames, distance)
    with torch.no_grad():
        fit.avatar.means[0] = torch.tensor([0.0, 5.0, 0.0])
    fit = make_fit(frames, distance, avatar=fit.avatar)
    assert fit.room[0, 0] == pytest.approx(5.0) and fit.room[1:, 0].max() < 1.5
    assert fit.iterate()["position"] < 1e-6


def test_anchors_hold_the_sides_as_they_began(frames, distance, tmp_path):
    """Where no frame looks, a fit with anchors stays nearer to the start; what the portrait shows is not held."""
    shutil.copytree(frames, tmp_path / "frames")
    start, shown = make_avatar(), torch.zeros(60, dtype=torch.bool)
    shown[:40] = True
    path = tmp_path / "frames" / "anchors.safetensors"
    about = AvatarStart(start, [], torch.zeros(2, 3), torch.zeros(11), shown, torch.zeros(4, SIZE, SIZE))
    render_anchors(about, AvatarFrames(frames), path, count=9)
    anchors = load_file(path)
    assert anchors["picture"].shape == (9, 3, SIZE, SIZE) and anchors["weight"].shape == (9, 1, SIZE, SIZE)
    assert anchors["weight"].max() == 255 and anchors["weight"].float().mean() < 250

    def moved(avatar):
        front = avatar.portrait_camera
        cameras = Cameras(anchors["camera_from_world"], front.focal.expand(9, 2), front.center.expand(9, 2))
        with torch.no_grad():
            seen = render(avatar(anchors["motion"]).gaussians, cameras, SIZE, anchors["background"]).color
        return float(((seen - anchors["picture"] / 255).abs() * anchors["weight"] / 255).mean())

    assert moved(make_avatar()) < 2 / 255
    changes = {"iterations": 45, "sharpen_iterations": 0, "densify_every": 0, "opacity_reset_every": 0}
    changes |= {"weight_adversarial": 0.0, "weight_anchor": 30.0, "anchor_every": 1, "lr_colors": 1e-2}
    free, held = (make_fit(folder, distance, **changes) for folder in (frames, tmp_path / "frames"))
    assert "anchor" in held.iterate() and "anchor" not in free.iterate()
    assert moved(held.run()) < 0.6 * moved(free.run())


@pytest.mark.gpu
def test_cuda_has_the_losses_of_the_cpu(frames, distance, tmp_path):
    """All losses but SDS, through densification and sharpening; kernels add up in another order."""
    results = {}
    for device in ("cpu", "cuda"):
        AcceleratorState._reset_state(reset_partial_state=True)
        dataset, accelerator = AvatarFrames(frames, seed=3), Accelerator(cpu=device == "cpu")
        assert accelerator.device.type == device
        fit = AvatarFit(make_avatar(), dataset, make_preset(), accelerator, tmp_path / device, 3, None, distance)
        fit.folder.mkdir()
        results[device] = [{name: float(value) for name, value in fit.iterate().items()} for _ in range(12)]
        fit.save_checkpoint()
        fit.load_checkpoint(checkpoints(fit.folder)[-1])
        fit.save_preview()
    AcceleratorState._reset_state(reset_partial_state=True)
    for step, (cpu, cuda) in enumerate(zip(results["cpu"], results["cuda"], strict=True)):
        assert cuda == pytest.approx(cpu, rel=0.02 if step < 4 else 0.1, abs=1e-4), step
