import math

import pytest
import torch

from vasa_hf.geometry.cameras import (
    Cameras,
    concatenate_cameras,
    look_at,
    orbit_cameras,
    pinhole_cameras,
    view_cameras,
)
from vasa_hf.geometry.rotations import matrix_from_euler

SIZE = (120, 200)


def test_orbit_sees_its_target_in_the_middle_at_its_distance():
    cameras = orbit_cameras(torch.linspace(-3, 3, 7), torch.linspace(-1.5, 1.5, 7), 2.5, target=(0.1, 0.2, 0.3))
    pixels, depth = cameras.project(torch.tensor([[0.1, 0.2, 0.3]]), SIZE)
    assert torch.allclose(pixels, torch.tensor([100.0, 60.0]).expand_as(pixels), atol=1e-3)
    assert torch.allclose(depth, torch.full_like(depth, 2.5), atol=1e-5)
    rotation = cameras.camera_from_world[:, :3, :3]
    assert torch.allclose(rotation @ rotation.transpose(-1, -2), torch.eye(3).expand(7, 3, 3), atol=1e-5)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(7), atol=1e-5)


def test_axes_x_right_y_down_z_away():
    front = orbit_cameras(0.0, 0.0, 2.0)
    pixels, depth = front.project(torch.tensor([[0.1, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.0, 0.1]]), SIZE)
    assert pixels[0, 0, 0] > 100 and abs(pixels[0, 0, 1] - 60) < 1e-4
    assert pixels[0, 1, 1] > 60 and abs(pixels[0, 1, 0] - 100) < 1e-4
    assert torch.allclose(depth[0], torch.tensor([2.0, 2.0, 2.1]))


def test_azimuth_turns_the_face_as_a_positive_yaw_does():
    points = torch.randn(20, 3) * 0.1
    angle = torch.tensor(0.4)
    moved, _ = orbit_cameras(angle, 0.0, 2.0).project(points, SIZE)
    turned = points @ matrix_from_euler(angle, torch.tensor(0.0), torch.tensor(0.0)).T
    seen, _ = orbit_cameras(0.0, 0.0, 2.0).project(turned, SIZE)
    assert torch.allclose(moved, seen, atol=1e-3)
    above, _ = orbit_cameras(0.0, 0.5, 2.0).project(torch.tensor([[0.0, 0.0, -0.1]]), SIZE)
    assert above[0, 0, 1] > 60  # from above, the nose lies lower in the image


def test_field_of_view_reaches_the_upper_and_lower_edge_and_pixels_are_square():
    cameras = orbit_cameras(0.0, 0.0, 2.0, fov_rad=0.5, aspect=200 / 120)
    edge = 2.0 * math.tan(0.25)
    pixels, _ = cameras.project(torch.tensor([[0.0, edge, 0.0], [edge, 0.0, 0.0]]), SIZE)
    assert torch.allclose(pixels[0, 0], torch.tensor([100.0, 120.0]), atol=1e-3)
    assert torch.allclose(pixels[0, 1], torch.tensor([160.0, 60.0]), atol=1e-3)


def test_looking_straight_down_is_defined():
    matrix = look_at(torch.tensor([0.0, -1.0, 0.0]), torch.zeros(3))
    assert torch.isfinite(matrix).all()
    assert torch.allclose(torch.linalg.det(matrix[:3, :3]), torch.tensor(1.0))


def test_parts_of_a_batch_and_positions():
    cameras = orbit_cameras(torch.tensor([0.0, math.pi / 2, -0.3]), 0.0, 2.0)
    assert torch.allclose(cameras.position[:2], torch.tensor([[0.0, 0.0, -2.0], [2.0, 0.0, 0.0]]), atol=1e-5)
    assert len(cameras[-1]) == 1 and torch.equal(cameras[-1].focal, cameras.focal[2:])
    joined = concatenate_cameras([cameras[0], cameras[1:]])
    assert torch.equal(joined.camera_from_world, cameras.camera_from_world)
    assert cameras.to(torch.float64).center.dtype == torch.float64


def test_wrong_cameras_are_refused():
    with pytest.raises(ValueError, match="`distance`"):
        orbit_cameras(0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="`fov_rad`"):
        pinhole_cameras(torch.eye(4)[None], fov_rad=4.0)
    with pytest.raises(ValueError, match="`position`"):
        look_at(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="`focal`"):
        Cameras(torch.eye(4)[None], torch.ones(2), torch.ones(1, 2))


# --- views about the head ---------------------------------------------------------------------------------------------

CENTER = torch.tensor([1.0, -2.0, 6.0])
PORTRAIT = orbit_cameras(0.0, distance=100.0)


def same(first, second, atol=1e-4):
    for name, value in vars(first).items():
        torch.testing.assert_close(value, getattr(second, name), rtol=1e-4, atol=atol)


def test_view_from_the_front_is_the_portraits_own():
    same(view_cameras(PORTRAIT, CENTER, *torch.tensor([[0.0], [0.0], [1.0]])), PORTRAIT)


def test_views_about_the_origin_are_those_of_an_orbit():
    azimuth, elevation = torch.tensor([-45.0, 0.0, 30.0, 120.0]), torch.tensor([0.0, 20.0, -10.0, 60.0])
    views = view_cameras(PORTRAIT, torch.zeros(3), azimuth, elevation, torch.tensor([1.0, 2.0, 0.5, 1.0]))
    distance = 100.0 * torch.tensor([1.0, 2.0, 0.5, 1.0])
    same(views, orbit_cameras(azimuth.deg2rad(), elevation.deg2rad(), distance), atol=1e-3)


def test_the_head_stays_where_the_portrait_has_it():
    """From all sides its middle is at the same pixel, at the distance that was asked for."""
    cameras = view_cameras(PORTRAIT, CENTER, *torch.tensor([[-60.0, 10.0, 170.0], [5.0, -30.0, 0.0], [1.0, 2.0, 0.7]]))
    pixel, depth = cameras.project(CENTER[None], SIZE)
    own_pixel, own_depth = PORTRAIT.project(CENTER[None], SIZE)
    torch.testing.assert_close(pixel, own_pixel.expand_as(pixel), rtol=0, atol=0.01)
    torch.testing.assert_close(depth[:, 0] / own_depth[0], torch.tensor([1.0, 2.0, 0.7]))


def test_positive_azimuth_is_to_the_right_and_positive_elevation_above():
    right, above = view_cameras(PORTRAIT, CENTER, *torch.tensor([[90.0, 0.0], [0.0, 90.0], [1.0, 1.0]])).position
    assert right[0] - CENTER[0] > 90 and (right - CENTER)[1:].abs().max() < 5
    assert above[1] - CENTER[1] < -90  # y is down
