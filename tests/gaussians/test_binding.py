import pytest
import torch

from vasa_hf.gaussians.binding import (
    TriangleFrames,
    binding_losses,
    local_from_world,
    place_on_mesh,
    triangle_frames,
    world_from_local,
)
from vasa_hf.gaussians.render import render
from vasa_hf.gaussians.scene import Gaussians
from vasa_hf.geometry.cameras import orbit_cameras
from vasa_hf.geometry.quaternions import matrix_from_quaternion

FACES = torch.tensor([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])


def tetrahedron() -> torch.Tensor:
    corners = torch.tensor([[0.0, 0, 0], [0.3, 0.05, 0], [0.1, 0.4, 0.1], [0.1, 0.1, 0.5]])
    return corners + torch.tensor([0.5, -0.9, 1.3])


def similarity():
    """A turn, a growth and a move."""
    rotation = matrix_from_quaternion(torch.tensor([0.4, -0.3, 0.7, 0.2]))
    return 1.7, rotation, torch.tensor([0.2, -0.5, 0.3])


def covariance(gaussians: Gaussians) -> torch.Tensor:
    axes = matrix_from_quaternion(gaussians.quats) * gaussians.scales[..., None, :]
    return axes @ axes.transpose(-1, -2)


def bound(count: int = 50) -> tuple[Gaussians, torch.Tensor]:
    local = Gaussians(
        torch.randn(count, 3), torch.randn(count, 4), torch.rand(count, 3), torch.rand(count), torch.rand(count, 3)
    )
    return local, torch.randint(len(FACES), (count,))


def test_frame_of_a_triangle_by_hand():
    vertices = torch.tensor([[1.0, 1.0, 5.0], [3.0, 1.0, 5.0], [1.5, 4.0, 5.0]])
    frames = triangle_frames(vertices, torch.tensor([[0, 1, 2]]))
    assert torch.allclose(frames.origin, torch.tensor([[5.5 / 3, 2.0, 5.0]]))
    assert torch.allclose(frames.rotation[0].T, torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]))
    assert torch.allclose(frames.scale, torch.tensor([(2.0 + 3.0) / 2]))


def test_gaussians_move_with_the_mesh():
    """A mesh that is turned, grown and moved takes its Gaussians along, exactly."""
    (local, triangles), vertices = bound(), tetrahedron()
    factor, rotation, move = similarity()
    before = world_from_local(local, triangles, triangle_frames(vertices, FACES))
    after = world_from_local(local, triangles, triangle_frames(factor * vertices @ rotation.T + move, FACES))
    assert torch.allclose(after.means, factor * before.means @ rotation.T + move, atol=1e-5)
    assert torch.allclose(covariance(after), factor**2 * rotation @ covariance(before) @ rotation.T, atol=1e-5)
    assert torch.equal(after.colors, local.colors)


def test_batches_of_deformations_and_of_gaussians():
    (local, triangles), vertices = bound(), torch.stack([tetrahedron(), tetrahedron() * 1.2, tetrahedron().roll(1, 1)])
    frames = triangle_frames(vertices, FACES)
    batch = world_from_local(local, triangles, frames)
    moved = local.map(lambda value: torch.stack([value, value * 0.5, value * 0.25]))
    both = world_from_local(moved, triangles, frames)
    for index in range(3):
        alone = world_from_local(local, triangles, triangle_frames(vertices[index], FACES))
        assert torch.allclose(batch.means[index], alone.means) and torch.allclose(batch.quats[index], alone.quats)
        half = world_from_local(moved.map(lambda v, i=index: v[i]), triangles, triangle_frames(vertices[index], FACES))
        assert torch.allclose(both.means[index], half.means) and torch.allclose(both.scales[index], half.scales)
    assert batch.colors.shape == (3, 50, 3) and batch.batch_size == 3


def test_local_from_world_is_the_inverse():
    (local, triangles), frames = bound(), triangle_frames(tetrahedron(), FACES)
    back = local_from_world(world_from_local(local, triangles, frames), triangles, frames)
    assert torch.allclose(back.means, local.means, atol=1e-4) and torch.allclose(back.scales, local.scales, atol=1e-5)
    assert torch.allclose(covariance(back), covariance(local), atol=1e-4)


def test_gradients_reach_the_vertices():
    local, triangles = bound(8)
    local = local.to(torch.float64)

    def world(vertices):
        out = world_from_local(local, triangles, triangle_frames(vertices, FACES))
        return out.means, out.quats, out.scales

    assert torch.autograd.gradcheck(world, tetrahedron().double().requires_grad_())


def test_new_gaussians_cover_the_mesh_and_every_face():
    vertices, count = tetrahedron(), 200
    local, triangles = place_on_mesh(vertices, FACES, count)
    assert torch.equal(triangles.unique(), torch.arange(len(FACES)))
    areas = [torch.linalg.cross(b - a, c - a).norm() for a, b, c in vertices[FACES]]
    assert torch.allclose(torch.bincount(triangles) / count, torch.stack(areas) / sum(areas), atol=0.02)
    assert len(local) == count and place_on_mesh(vertices, FACES, 4)[0].means.abs().max() < 1e-6  # one: in the middle
    world = world_from_local(local, triangles, triangle_frames(vertices, FACES))
    corners = vertices[FACES][triangles]
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((world.means - corners[:, 0]) * normal).sum(-1).abs().max() < 1e-6  # in the plane
    weights = torch.linalg.solve(corners.transpose(1, 2).double(), world.means[..., None].double())[..., 0]
    assert torch.allclose(weights.sum(-1), torch.ones(count).double(), atol=1e-4) and (weights > -1e-4).all()
    # The thin axis is the normal: no direction is covered less than the normal.
    thickness = (normal[:, None] @ covariance(world) @ normal[..., None])[:, 0, 0].sqrt() / normal.norm(dim=-1)
    assert torch.allclose(thickness, world.scales.min(dim=-1).values, rtol=1e-3)
    views = orbit_cameras(torch.tensor([0.5, 2.0, 4.0]), 0.2, 2.0, target=vertices.mean(dim=0), fov_rad=0.5)
    alpha = render(world, views, 64).alpha
    inner, depth = views.project(vertices.mean(dim=0)[None], (64, 64))
    assert (depth > 0).all() and (alpha[:, 0, 28:36, 28:36] > 0.6).all()
    with pytest.raises(ValueError, match="`count`"):
        place_on_mesh(vertices, FACES, 3)


def test_binding_losses_act_beyond_the_thresholds_only():
    means = torch.tensor([[0.9, 0.0, 0.0], [0.0, 3.0, 0.0]], requires_grad=True)
    scales = torch.tensor([[0.5, 0.6, 0.1], [0.7, 0.2, 0.2]], requires_grad=True)
    position, scaling = binding_losses(means, scales)
    assert torch.isclose(position, torch.tensor(1.0)) and torch.isclose(scaling, torch.tensor(0.05), atol=1e-5)
    (position + scaling).backward()
    assert torch.equal(means.grad, torch.tensor([[0.0, 0, 0], [0.0, 0.5, 0.0]]))
    assert torch.allclose(scales.grad, torch.tensor([[0.0, 0, 0], [0.5, 0, 0]]), atol=1e-4)
    assert binding_losses(means[:0], scales[:0])[0] == 0


def test_frames_of_a_mesh_may_be_indexed_by_any_binding():
    frames = TriangleFrames(torch.zeros(1, 3), torch.eye(3)[None], torch.ones(1))
    local, _ = bound(5)
    world = world_from_local(local, torch.zeros(5, dtype=torch.long), frames)
    assert torch.equal(world.means, local.means)
