r"""Gaussians bound to the triangles of a mesh: they follow its position, rotation and size.

Each triangle has a frame; a Gaussian's parameters are in the frame of its triangle:

```
        v2                 origin    the triangle's centroid T
       /  \                rotation  R: columns x = direction of v0 v1, y = the normal, z = x cross y
      / T  \               scale     k: mean of the length of v0 v1 and of the height above it
     v0 --> v1
                           world: mean = k R mean + T,   quat = R quat,   scales = k scales
```
Source: GaussianAvatars (Qian et al. 2024) §3.2-3.3, as in VASA-3D §3.1 and Eq. 8.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vasa_hf.gaussians.scene import Gaussians
from vasa_hf.geometry.quaternions import quaternion_from_matrix, quaternion_multiply

#: Thresholds of the regularisers (GaussianAvatars §3.3): in triangle sizes.
POSITION_THRESHOLD = 1.0
SCALING_THRESHOLD = 0.6
#: Not in the papers: a new Gaussian is a disc; its thickness in fractions of its width.
DISC_THICKNESS = 0.2


@dataclasses.dataclass(eq=False)
class TriangleFrames:
    """Frames of the triangles of a mesh, or of a batch of its deformations.

    Args:
        origin (`torch.Tensor` of shape `([batch,] faces, 3)`): Centroids.
        rotation (`torch.Tensor` of shape `([batch,] faces, 3, 3)`): `world_from_local`.
        scale (`torch.Tensor` of shape `([batch,] faces)`): Sizes, in world units.
    """

    origin: Tensor
    rotation: Tensor
    scale: Tensor


def triangle_frames(
    vertices: Tensor,  # [..., V, 3]
    faces: Tensor,  # [F, 3]
) -> TriangleFrames:
    """Frames of all triangles.

    Args:
        vertices (`torch.Tensor` of shape `([batch,] vertices, 3)`): In world units.
        faces (`torch.Tensor` of shape `(faces, 3)`): Indices of the corners.
    """
    first, second, third = (vertices[..., faces[:, corner], :] for corner in range(3))
    edge = second - first
    x = F.normalize(edge, dim=-1)
    y = F.normalize(torch.linalg.cross(x, third - first), dim=-1)
    z = torch.linalg.cross(x, y)
    height = ((third - first) * z).sum(dim=-1).abs()
    origin = (first + second + third) / 3
    return TriangleFrames(origin, torch.stack([x, y, z], dim=-1), (edge.norm(dim=-1) + height) / 2)


def world_from_local(
    local: Gaussians,
    triangles: Tensor,  # [N]
    frames: TriangleFrames,
) -> Gaussians:
    """Transform bound Gaussians from the frames of their triangles to the world.

    Args:
        local (`Gaussians`): In the frames of their triangles; one set, or one for each deformation.
        triangles (`torch.Tensor` of shape `(gaussians,)`): The face of each Gaussian.
        frames (`TriangleFrames`): Frames of one mesh, or of a batch of deformations.

    Returns:
        `Gaussians`: In the world, with a batch dimension if either had one.
    """
    origin, rotation = frames.origin[..., triangles, :], frames.rotation[..., triangles, :, :]
    scale = frames.scale[..., triangles, None]
    means = origin + scale * (rotation @ local.means[..., None])[..., 0]
    quats = quaternion_multiply(quaternion_from_matrix(frames.rotation)[..., triangles, :], local.quats)
    leading = means.shape[:-1]
    opacities = local.opacities.expand(leading)
    trailing = local.colors.shape[local.means.ndim - 1 :]
    return Gaussians(means, quats, local.scales * scale, opacities, local.colors.expand(*leading, *trailing))


def local_from_world(
    gaussians: Gaussians,
    triangles: Tensor,  # [N]
    frames: TriangleFrames,
) -> Gaussians:
    """Inverse of `world_from_local`, with the same arguments."""
    origin, rotation = frames.origin[..., triangles, :], frames.rotation[..., triangles, :, :]
    scale = frames.scale[..., triangles, None]
    means = (rotation.transpose(-1, -2) @ (gaussians.means - origin)[..., None])[..., 0] / scale
    inverse = quaternion_from_matrix(frames.rotation.transpose(-1, -2))[..., triangles, :]
    quats = quaternion_multiply(inverse, gaussians.quats)
    return Gaussians(means, quats, gaussians.scales / scale, gaussians.opacities, gaussians.colors)


def place_on_mesh(
    vertices: Tensor,  # [V, 3]
    faces: Tensor,  # [F, 3]
    count: int,
) -> tuple[Gaussians, Tensor]:
    """Cover a mesh with new Gaussians: flat discs, at least one on each face.

    Not in the papers, which start with one Gaussian in the middle of each face: here large faces get more, spread
    evenly by a low-discrepancy sequence (R2, Roberts 2018).

    Args:
        vertices (`torch.Tensor` of shape `(vertices, 3)`): In world units.
        faces (`torch.Tensor` of shape `(faces, 3)`): Indices of the corners.
        count (`int`): Number of Gaussians; at least one for each face.

    Returns:
        The Gaussians, grey and with opacity 0.9, in the frames of their triangles, and the triangles `(count,)`, in
        ascending order.

    Raises:
        ValueError: If `count` is less than the number of faces.
    """
    if count < len(faces):
        raise ValueError(f"`count` must be at least the number of faces, {len(faces)}, got {count}.")
    corners = vertices[faces]  # [F, 3, 3]
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=-1) / 2
    portion = area.double().cumsum(dim=0) / area.double().sum()
    numbers = 1 + torch.diff((portion * (count - len(faces))).round().long(), prepend=faces.new_zeros(1))
    triangles = torch.repeat_interleave(torch.arange(len(faces), device=faces.device), numbers)
    place = torch.arange(count, device=faces.device) - (numbers.cumsum(dim=0) - numbers)[triangles]
    # Two coordinates in the unit square, the first 1/3; points beyond the diagonal are reflected into the triangle.
    square = (1 / 3 + place[:, None] * vertices.new_tensor([0.7548776662466927, 0.5698402909980532])) % 1
    square = torch.where(square.sum(dim=-1, keepdim=True) > 1, 1 - square, square)
    weights = torch.cat([1 - square.sum(dim=-1, keepdim=True), square], dim=-1)
    frames = triangle_frames(vertices, faces)
    size = frames.scale[triangles, None].clamp_min(1e-12)
    offset = (weights[:, None] @ corners[triangles])[:, 0] - frames.origin[triangles]
    means = (frames.rotation[triangles].transpose(-1, -2) @ offset[..., None])[..., 0] / size
    width = (area / numbers / math.pi).sqrt()[triangles, None] / size
    scales = width * width.new_tensor([1.0, DISC_THICKNESS, 1.0])
    quats = means.new_tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1)
    return Gaussians(means, quats, scales, means.new_full((count,), 0.9), means.new_full((count, 3), 0.5)), triangles


def binding_losses(
    means: Tensor,  # [N, 3]
    scales: Tensor,  # [N, 3]
) -> tuple[Tensor, Tensor]:
    """Regularisers that keep Gaussians near their triangle and not larger than it.

    Source: GaussianAvatars §3.3, max(|mu|, 1) and max(s, 0.6), which have the gradients of these hinges; its weights
    are 0.01 and 1. As there, pass only the Gaussians that are in the image.

    Args:
        means (`torch.Tensor` of shape `(gaussians, 3)`): In the frames of the triangles.
        scales (`torch.Tensor` of shape `(gaussians, 3)`): In triangle sizes.

    Returns:
        Position loss and scaling loss, both scalars; 0 if there is no Gaussian.
    """
    count = max(len(means), 1)
    position = F.relu(means.norm(dim=-1) - POSITION_THRESHOLD).sum() / count
    excess = F.relu(scales - SCALING_THRESHOLD)
    # The square root is not differentiable at 0, where most Gaussians are.
    scaling = (excess.square().sum(dim=-1) + 1e-12).sqrt().sub(1e-6).sum() / count
    return position, scaling
