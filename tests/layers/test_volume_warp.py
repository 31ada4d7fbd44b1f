import torch

from vasa_hf.geometry.rotations import euler_from_matrix, matrix_from_euler
from vasa_hf.layers.volume_warp import (
    canonical_from_posed,
    displace,
    from_volume_grid,
    identity_grid,
    posed_from_canonical,
    to_volume_grid,
    warp_volume,
)


def some_pose(batch=3):
    angles = torch.rand(batch, 3) * 0.8 - 0.4
    place = torch.rand(batch, 2) * 0.2 + 0.4
    return torch.cat([angles, place, torch.rand(batch, 1) * 0.1 + 0.2], 1)


def test_euler_round_trip_and_axes():
    angles = torch.rand(20, 3) * 2 - 1
    rotation = matrix_from_euler(*angles.unbind(1))
    torch.testing.assert_close(euler_from_matrix(rotation), angles)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(20, 3, 3), atol=1e-6, rtol=0)
    # The nose points to the viewer, at -z. Yaw > 0 turns it to the image's left, pitch > 0 down.
    nose = torch.tensor([0.0, 0.0, -1.0])
    zero = torch.zeros(1)
    assert (matrix_from_euler(zero + 0.3, zero, zero) @ nose)[0, 0] < -0.1
    assert (matrix_from_euler(zero, zero + 0.3, zero) @ nose)[0, 1] > 0.1
    # Roll > 0 is clockwise on the screen: what was on the right goes down.
    right = torch.tensor([1.0, 0.0, 0.0])
    assert (matrix_from_euler(zero, zero, zero + 0.3) @ right)[0, 1] > 0.1


def test_canonical_from_posed_against_a_loop():
    pose = some_pose()
    grid = identity_grid(2, 3, 4, pose)[None]
    got = canonical_from_posed(grid, pose)
    for b in range(3):
        rotation = matrix_from_euler(*pose[b, :3])
        for point, (u, v, w) in zip(got[b].reshape(-1, 3), grid[0].reshape(-1, 3).tolist(), strict=True):
            posed = torch.tensor([
                ((u + 1) / 2 - pose[b, 3]) / pose[b, 5],
                ((v + 1) / 2 - pose[b, 4]) / pose[b, 5],
                w * 1.2 + 0.4,
            ])  # fmt: skip
            torch.testing.assert_close(point, rotation.T @ posed, atol=1e-5, rtol=1e-5)


def test_poses_invert():
    pose = some_pose()
    grid = identity_grid(4, 8, 8, pose)[None].expand(3, -1, -1, -1, -1)
    torch.testing.assert_close(posed_from_canonical(canonical_from_posed(grid, pose), pose), grid, atol=1e-5, rtol=0)
    torch.testing.assert_close(to_volume_grid(from_volume_grid(grid)), grid, atol=1e-6, rtol=0)


def test_warp_volume_identity_shift_and_gradient():
    volume = torch.randn(2, 3, 4, 5, 6, requires_grad=True)
    grid = identity_grid(4, 5, 6, volume).expand(2, -1, -1, -1, -1)
    torch.testing.assert_close(warp_volume(volume, grid), volume, atol=1e-5, rtol=0)
    shifted = warp_volume(volume, grid + torch.tensor([2 / 6, 0.0, 0.0]))
    torch.testing.assert_close(shifted[..., :-1], volume[..., 1:], atol=1e-5, rtol=0)
    shifted.sum().backward()
    assert volume.grad.abs().sum() > 0


def test_displace_adds_the_field():
    points = from_volume_grid(identity_grid(4, 4, 4, torch.zeros(1)))[None]
    field = torch.zeros(1, 3, 4, 4, 4)
    field[:, 1] = 0.25
    torch.testing.assert_close(displace(points, field), points + torch.tensor([0.0, 0.25, 0.0]))
