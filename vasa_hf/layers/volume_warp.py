"""Rigid and non-rigid 3D warps between a posed crop and the canonical head.

Two frames, both sampled by `grid_sample` coordinates in [-1, 1] (x right, y down, z away, `align_corners=False`)::

    canonical volume                            posed volume (of the crop)
    [-2, 2] x [-2, 2] x [-0.8, 1.6]             the crop's square  x  the same depth range
    in canonical units (outer eye corners       p = R c;  x = scale * p_x + t_x, y likewise, in
    one unit apart), axes of the face           fractions of the crop; depth p_z in canonical units
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from vasa_hf.geometry.rotations import matrix_from_euler

# Half extents and centre of the canonical volume. Not in the paper: its crop and units are not given.
HALF_EXTENT = (2.0, 2.0, 1.2)
CENTER = (0.0, 0.0, 0.4)


def identity_grid(depth: int, height: int, width: int, like: Tensor) -> Tensor:
    """Voxel centres.

    Args:
        depth (`int`): Voxels along z.
        height (`int`): Voxels along y.
        width (`int`): Voxels along x.
        like (`torch.Tensor`): Gives device; the result is float32.

    Returns:
        `torch.Tensor` of shape `(depth, height, width, 3)`, xyz in [-1, 1].
    """
    axes = [
        (torch.arange(n, device=like.device, dtype=torch.float32) + 0.5) * 2 / n - 1 for n in (depth, height, width)
    ]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y, z], -1)


def canonical_from_posed(grid: Tensor, pose: Tensor) -> Tensor:
    """Undo the head pose: posed sampling coordinates to canonical units.

    Source: VASA-1 §3.1 (rigid warp).

    Args:
        grid (`torch.Tensor` of shape `(batch or 1, ..., 3)`): Posed coordinates in [-1, 1].
        pose (`torch.Tensor` of shape `(batch, 6)`): Yaw, pitch, roll (radians), tx, ty, scale (crop fractions).

    Returns:
        `torch.Tensor` of shape `(batch, ..., 3)` in canonical units.
    """
    shape = (len(pose), *[1] * (grid.ndim - 2), 1)
    planar = ((grid[..., :2] + 1) / 2 - pose[:, 3:5].view(*shape[:-1], 2)) / pose[:, 5].view(shape)
    depth = grid[..., 2:] * HALF_EXTENT[2] + CENTER[2]
    points = torch.cat([planar, depth.expand(*planar.shape[:-1], 1)], -1)
    rotation = matrix_from_euler(*pose[:, :3].unbind(-1))
    return (points.flatten(1, -2) @ rotation).view(points.shape)  # c = R^T p, as rows: p @ R


def posed_from_canonical(points: Tensor, pose: Tensor) -> Tensor:
    """Inverse of `canonical_from_posed`.

    Args:
        points (`torch.Tensor` of shape `(batch, ..., 3)`): Canonical units.
        pose (`torch.Tensor` of shape `(batch, 6)`): See `canonical_from_posed`.

    Returns:
        `torch.Tensor` of shape `(batch, ..., 3)`: coordinates in [-1, 1].
    """
    rotation = matrix_from_euler(*pose[:, :3].unbind(-1))
    rotated = (points.flatten(1, -2) @ rotation.mT).view(points.shape)
    shape = (len(pose), *[1] * (points.ndim - 2), 1)
    planar = (rotated[..., :2] * pose[:, 5].view(shape) + pose[:, 3:5].view(*shape[:-1], 2)) * 2 - 1
    return torch.cat([planar, (rotated[..., 2:] - CENTER[2]) / HALF_EXTENT[2]], -1)


def to_volume_grid(points: Tensor) -> Tensor:
    """Convert canonical units to sampling coordinates of the canonical volume, same shape."""
    return (points - points.new_tensor(CENTER)) / points.new_tensor(HALF_EXTENT)


def from_volume_grid(grid: Tensor) -> Tensor:
    """Inverse of `to_volume_grid`."""
    return grid * grid.new_tensor(HALF_EXTENT) + grid.new_tensor(CENTER)


def warp_volume(
    volume: Tensor,  # [B, C, D, H, W]
    grid: Tensor,  # [B, D', H', W', 3]
) -> Tensor:
    """Resample a volume along a 3D flow, in float32; positions outside get the border's value.

    Source: VASA-1 §3.1.

    Args:
        volume (`torch.Tensor` of shape `(batch, channels, depth, height, width)`): Features.
        grid (`torch.Tensor` of shape `(batch, depth', height', width', 3)`): Absolute positions, xyz in [-1, 1].

    Returns:
        `torch.Tensor` of shape `(batch, channels, depth', height', width')`.

    Raises:
        ValueError: If the batch sizes differ.
    """
    if len(volume) != len(grid):
        raise ValueError(f"`grid` must have the batch size of `volume`, {len(volume)}, got {len(grid)}.")
    out = F.grid_sample(volume.float(), grid.float(), padding_mode="border", align_corners=False)
    return out.to(volume.dtype)


def displace(points: Tensor, field: Tensor) -> Tensor:
    """Add a non-rigid displacement field of the canonical volume to points.

    Args:
        points (`torch.Tensor` of shape `(batch, depth, height, width, 3)`): Canonical units.
        field (`torch.Tensor` of shape `(batch, 3, D, H, W)`): Displacements in canonical units.

    Returns:
        `torch.Tensor` of shape `(batch, depth, height, width, 3)`.
    """
    return points + warp_volume(field.float(), to_volume_grid(points)).permute(0, 2, 3, 4, 1)
