"""An avatar before any training looks like its portrait; with the embedded VASA-1 and the package's portrait."""

from pathlib import Path

import pytest
import torch

import vasa_hf
from vasa_hf.gaussians.render import render
from vasa_hf.metrics.image import psnr
from vasa_hf.models.gaussian_avatar_vasa3d import SMALL_CONFIG
from vasa_hf.training.avatar import start as avatar_start
from vasa_hf.training.avatar.losses import cameras_around
from vasa_hf.training.avatar.start import start_avatar

PORTRAIT = Path(vasa_hf.__file__).parent / "assets" / "portrait.jpg"
COUNT = 16_000
CONFIG = {name: value for name, value in SMALL_CONFIG.items() if name != "num_gaussians"}


@pytest.fixture(scope="module")
def start(pipe):
    return start_avatar(pipe, PORTRAIT, num_gaussians=COUNT, **CONFIG)


@torch.no_grad()
def shown(start, background, motion=None, cameras=None):
    gaussians = start.avatar((start.motion if motion is None else motion)[None]).gaussians
    return render(gaussians, cameras or start.avatar.portrait_camera, 256, background).color


def plain(start, background):
    colours, alpha = start.picture[:3], start.picture[3]
    return (alpha * colours + (1 - alpha) * torch.tensor(background)[:, None, None])[None]


def test_looks_like_the_portrait_before_any_background(start):
    for background in ((0.9, 0.9, 0.9), (0.1, 0.5, 0.2)):
        truth = plain(start, background)
        assert psnr(shown(start, background), truth) > 20.5
    grey = start.avatar.colors.detach().clone()
    with torch.no_grad():
        start.avatar.colors.fill_(0.5)
        assert psnr(shown(start, (0.9, 0.9, 0.9)), plain(start, (0.9, 0.9, 0.9))) < 17
        start.avatar.colors.copy_(grey)


def test_sizes_and_what_vasa1_gets(start, pipe):
    assert 0.9 * COUNT < len(start.avatar.means) == len(start.shown) <= COUNT
    assert start.avatar.config.num_gaussians == len(start.avatar.means)
    assert len(start.portraits) == len(start.backgrounds) == 2
    for portrait, background in zip(start.portraits, start.backgrounds, strict=True):
        corner = (portrait.crop.image[:, :8, :8] + 1) / 2
        torch.testing.assert_close(corner.mean((1, 2)), background, atol=0.01, rtol=0)
    assert torch.equal(start.avatar.own_motion, start.motion)
    torch.testing.assert_close(start.motion[None], start.portraits[0].motion, atol=0.3, rtol=0)


def test_moves_as_the_motion_says(start, pipe):
    """The detector finds the head where the motion puts it: turned to either side, and to the right by a tenth."""

    def seen(turn, shift):
        motion = start.motion.clone()
        motion[0] += turn
        motion[3] += shift
        return pipe.face_analyzer.detect(shown(start, (0.9,) * 3, motion)[0].clamp(0, 1) * 2 - 1)[0]

    left, right = seen(0.25, 0.0), seen(-0.25, 0.0)
    assert float(left.pose[0] - right.pose[0]) == pytest.approx(0.5, abs=0.2)
    moved = (seen(0.0, 0.1).box[[0, 2]].mean() - seen(0.0, 0.0).box[[0, 2]].mean()) / 256
    assert float(moved) == pytest.approx(0.1, abs=0.05)


def test_no_hole_from_beside(start):
    """What the portrait hides has colour and cover, too: the middle of the head is opaque from both sides."""
    gaussians = start.avatar(start.motion[None]).gaussians
    for azimuth in (-0.8, 0.8):
        camera = cameras_around(start.avatar, gaussians, torch.tensor([azimuth]), torch.zeros(1))
        with torch.no_grad():
            alpha = render(gaussians, camera, 256).alpha[0, 0]
        assert alpha[96:160, 112:144].min() > 0.9


def test_unseen_colours_are_those_near_by(start):
    """The scalp behind is no grey filling: its colours lie among those of the portrait's person."""
    assert not torch.isclose(start.avatar.colors, torch.tensor(0.5)).all(dim=1).any()
    assert start.avatar.colors.min() >= -1e-4 and start.avatar.colors.max() <= 1 + 1e-4
    assert 0.1 < start.shown.float().mean() < 0.7


def test_outside_of_the_picture_is_no_person(pipe):
    """A portrait cut at the neck: below its edge, where the crop repeats the last row, nothing is made up."""
    crop = pipe.prepare_portrait(PORTRAIT).crop
    alpha = avatar_start._within_picture(crop)
    inside = crop.crop_from_image.float() @ torch.tensor([0.0, float(crop.image_size[0]), 1.0])
    assert alpha[128, 128] == 1.0
    row = int(256 * min(max(float(inside[1]), 0.0), 1.0))
    assert row == 256 or alpha[min(row + 2, 255) :].max() < 0.5


def test_a_face_turned_away_is_refused(pipe, monkeypatch):
    monkeypatch.setattr(avatar_start, "MOST_YAW_RAD", 0.0)
    with pytest.raises(ValueError, match="`image` must show the face turned by less"):
        start_avatar(pipe, PORTRAIT, num_gaussians=COUNT, **CONFIG)


def test_bad_input(pipe):
    with pytest.raises(ValueError, match="face"):
        start_avatar(pipe, torch.rand(3, 256, 256), num_gaussians=COUNT, **CONFIG)
    with pytest.raises(ValueError, match="`num_gaussians` must be at least"):
        start_avatar(pipe, PORTRAIT, num_gaussians=5_000, **CONFIG)
