import dataclasses

import pytest
import torch

from vasa_hf.gaussians.render import render
from vasa_hf.gaussians.scene import Gaussians
from vasa_hf.geometry.cameras import orbit_cameras
from vasa_hf.training.avatar import hair_shell as avatar_shell
from vasa_hf.training.avatar.hair_shell import PortraitMaps, is_hair, make_shell, shell_heights, shell_size

GRID, PIXEL_CM = 64, 0.25


def disc(radius=20.0, **changes):
    """A bare disc of hair, no mesh."""
    y, x = torch.meshgrid(torch.arange(GRID) + 0.5, torch.arange(GRID) + 0.5, indexing="ij")
    distance = ((x - 32).square() + (y - 32).square()).sqrt()
    nothing = torch.zeros(GRID, GRID, dtype=torch.bool)
    maps = PortraitMaps(
        colours=torch.stack([x / GRID, y / GRID, 0 * x]),
        alpha=(distance < radius).float(),
        height_cm=torch.full((GRID, GRID), torch.nan),
        face=nothing,
        neck=nothing,
        floating_row=GRID,
        chin_row=GRID,
    )
    return dataclasses.replace(maps, **changes), distance


def test_a_disc_is_blown_up_as_the_equation_says(monkeypatch):
    """laplacian(h²) = -c on a disc of radius R: h² = c/4 (R² - r²)."""
    monkeypatch.setattr(avatar_shell, "_MOST_CM", 1e4)
    maps, distance = disc()
    height, filled = shell_heights(maps, PIXEL_CM)
    assert torch.equal(filled, maps.alpha > 0.5)
    inside = distance < 17  # the height is 0 half a pixel beyond the last one
    expected = (avatar_shell._HAIR_BULGE / 4 * PIXEL_CM**2 * (20.5**2 - distance.square())).clamp_min(0).sqrt()
    assert ((height - expected).abs() / expected)[inside].max() < 0.06


def test_the_shell_begins_at_the_mesh_and_covers_the_scalp():
    maps, distance = disc()
    face = distance < 10
    height = torch.where(distance < 14, torch.full((), 5.0), torch.full((), torch.nan))  # 10..14 is scalp
    maps = dataclasses.replace(maps, face=face, height_cm=height)
    shell, filled = shell_heights(maps, PIXEL_CM)
    assert not filled[face].any() and torch.equal(shell[face], height[face])
    scalp = (distance > 10) & (distance < 14)
    assert (shell[scalp] >= 5.0).all()
    assert shell[(distance > 10) & (distance < 11)].min() > 4.0 > shell[(distance > 19) & (maps.alpha > 0)].max()


def test_a_gap_between_lips_does_not_matter():
    """FLAME's mesh is open there: nothing says how high a pixel is that only touches edges in the air."""
    maps, distance = disc(floating_row=20)
    gap = torch.zeros_like(maps.face)
    gap[40:42, 29:35] = True
    whole, open_lips = (
        dataclasses.replace(maps, face=face, height_cm=torch.where(face, 5.0, torch.nan))
        for face in (distance < 14, (distance < 14) & ~gap)
    )
    height, filled = shell_heights(open_lips, PIXEL_CM)
    assert torch.isfinite(height).all() and not filled[gap].any()
    expected, around = shell_heights(whole, PIXEL_CM)
    assert torch.equal(filled, around)
    torch.testing.assert_close(height[filled], expected[filled])
    gaussians, _ = make_shell(open_lips, PIXEL_CM)
    assert all(torch.isfinite(value).all() for value in vars(gaussians).values())


def test_below_the_nose_the_face_ends_in_the_air():
    maps, distance = disc()
    maps = dataclasses.replace(maps, face=distance < 8, height_cm=torch.full((GRID, GRID), 9.0))
    maps.height_cm[distance >= 8] = torch.nan
    below = torch.arange(GRID)[:, None] > 34
    ring = (distance > 8) & (distance < 9.5) & below
    attached, _ = shell_heights(maps, PIXEL_CM)
    floating, _ = shell_heights(dataclasses.replace(maps, floating_row=34.0), PIXEL_CM)
    assert floating[ring].mean() < 0.75 * attached[ring].mean()


@pytest.mark.parametrize("azimuth", [0.0, 0.6, 1.5])
def test_the_shell_is_closed(azimuth):
    """Seen from anywhere there is no hole in the middle, and no Gaussian is far out."""
    maps, _ = disc(radius=16.0)
    shell, hair = make_shell(maps, PIXEL_CM)
    assert hair.all() and (shell.opacities <= 0.95).all()
    place = torch.cat([(shell.means[:, :2] - 0.5) * GRID * PIXEL_CM, -shell.means[:, 2:]], 1)
    world = Gaussians(place, shell.quats, shell.scales, shell.opacities, shell.colors)
    alpha = render(world, orbit_cameras(azimuth, distance=100.0, fov_rad=0.16), 64).alpha[0, 0]
    assert alpha[28:36, 28:36].min() > (0.75 if azimuth > 1 else 0.95)  # the seam is seen from beside
    assert alpha[:4].max() < 0.05 and alpha[:, :4].max() < 0.05


def test_the_back_mirrors_the_front_in_the_hairs_colours():
    maps, distance = disc(radius=16.0)
    maps = dataclasses.replace(maps, face=distance < 8, height_cm=torch.full((GRID, GRID), 3.0))
    maps.colours[:, distance < 8] = torch.tensor([0.0, 0.0, 1.0])[:, None]  # the face is blue
    shell, _ = make_shell(maps, PIXEL_CM)
    front, back = shell.means[:, 2] > 0, shell.means[:, 2] < 0
    assert front.any() and back.any()
    behind_face = back & ((shell.means[:, :2] - 0.5).norm(dim=1) < 6 / GRID)
    assert behind_face.any() and shell.colors[behind_face, 2].max() < 0.2


def test_a_forehead_does_not_colour_the_back():
    """Skin above the mesh's face is no hair: the back has the colour of the head's rim."""
    maps, distance = disc(radius=20.0)
    skin, hair = torch.tensor([0.9, 0.6, 0.5]), torch.tensor([0.2, 0.1, 0.1])
    colours = torch.where(distance < 13, skin[:, None, None], hair[:, None, None])
    height = torch.where(distance < 8, 3.0, torch.nan)
    maps = dataclasses.replace(maps, colours=colours, face=distance < 8, height_cm=height)
    assert torch.equal(is_hair(maps, colours), distance >= 13)
    shell, _ = make_shell(maps, PIXEL_CM)
    back = shell.means[:, 2] < 0
    assert (shell.colors[back] - hair).abs().max() < 0.05
    assert (shell.colors[~back] - skin).abs().amax(1).min() < 0.01  # the front shows what the portrait shows
    bald, _ = disc()
    assert is_hair(bald, bald.colours).all()  # no face, nothing to compare with


def test_size_is_known_before():
    for radius in (6.0, 16.0, 40.0):
        maps, _ = disc(radius)
        count = len(make_shell(maps, PIXEL_CM)[0])
        assert count <= shell_size(maps) < 1.15 * count + 40
