"""Linear blend skinning as in SMPL and FLAME, in torch: batched and differentiable. Pure functions.

Source: Li et al. 2017 (FLAME) Eq. 2-5, Loper et al. 2015 (SMPL) Eq. 2-10.

```
rest     template + shape offsets + expression offsets
joints   joint_regressor @ (template + shape offsets)      without expression, as in FLAME
posed    sum over joints of weight * (world rotation @ (rest + pose offsets - joint) + world position of the joint)
```
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def rotation_from_vector(
    vector_rad: Tensor,  # [..., 3]
) -> Tensor:
    """Rodrigues' formula, smooth at zero in value and gradient.

    Args:
        vector_rad (`torch.Tensor` of shape `(..., 3)`): Axis times angle in radians.

    Returns:
        `torch.Tensor` of shape `(..., 3, 3)`.
    """
    square = vector_rad.square().sum(-1)[..., None, None]
    small = square < 1e-6
    angle = torch.where(small, torch.ones_like(square), square).sqrt()
    a = torch.where(small, 1 - square / 6, angle.sin() / angle)
    b = torch.where(small, 0.5 - square / 24, 2 * ((angle / 2).sin() / angle).square())
    x, y, z = vector_rad.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    return torch.eye(3, dtype=vector_rad.dtype, device=vector_rad.device) + a * cross + b * (cross @ cross)


def pose_offsets(
    rotations: Tensor,  # [B, J, 3, 3]
    pose_basis: Tensor,  # [9 (J - 1), V, 3]
) -> Tensor:
    """Compute correctives that are linear in the rotation matrices of all joints except the root.

    Args:
        rotations (`torch.Tensor` of shape `(batch, joints, 3, 3)`): Each joint relative to its parent.
        pose_basis (`torch.Tensor` of shape `(9 * (joints - 1), vertices, 3)`): FLAME's `posedirs`, last axis first.

    Returns:
        `torch.Tensor` of shape `(batch, vertices, 3)`.
    """
    eye = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
    feature = (rotations[:, 1:] - eye).flatten(1)  # [B, 9 (J - 1)]
    return (feature @ pose_basis.flatten(1)).unflatten(1, (-1, 3))


def world_transforms(
    rotations: Tensor,  # [B, J, 3, 3]
    joints: Tensor,  # [B, J, 3]
    parents: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Compute world rotations and positions along the kinematic tree.

    Args:
        rotations (`torch.Tensor` of shape `(batch, joints, 3, 3)`): Each joint relative to its parent.
        joints (`torch.Tensor` of shape `(batch, joints, 3)`): Joints at rest.
        parents (`Sequence[int]`): Parent of each joint; -1 for the root, which comes first; parents before children.

    Returns:
        rotations (`torch.Tensor` of shape `(batch, joints, 3, 3)`) in the world, and posed joints
        (`(batch, joints, 3)`).
    """
    world, posed = [rotations[:, 0]], [joints[:, 0]]
    for joint, parent in enumerate(parents[1:], start=1):
        bone = joints[:, joint] - joints[:, parent]
        world.append(world[parent] @ rotations[:, joint])
        posed.append(posed[parent] + (world[parent] @ bone[..., None])[..., 0])
    return torch.stack(world, 1), torch.stack(posed, 1)


def skin(
    rest: Tensor,  # [B, V, 3]
    joints: Tensor,  # [B, J, 3]
    rotations: Tensor,  # [B, J, 3, 3]
    parents: Sequence[int],
    weights: Tensor,  # [V, J]
    pose_basis: Tensor | None = None,  # [9 (J - 1), V, 3]
) -> tuple[Tensor, Tensor]:
    """Pose a mesh.

    Args:
        rest (`torch.Tensor` of shape `(batch, vertices, 3)`): Vertices at rest, shape and expression applied.
        joints (`torch.Tensor` of shape `(batch, joints, 3)`): Joints at rest.
        rotations (`torch.Tensor` of shape `(batch, joints, 3, 3)`): Each joint relative to its parent.
        parents (`Sequence[int]`): Parent of each joint, see `world_transforms`.
        weights (`torch.Tensor` of shape `(vertices, joints)`): Rows sum to one.
        pose_basis (`torch.Tensor` of shape `(9 * (joints - 1), vertices, 3)`, *optional*): See `pose_offsets`.

    Returns:
        Posed vertices (`torch.Tensor` of shape `(batch, vertices, 3)`) and joints (`(batch, joints, 3)`).
    """
    if pose_basis is not None and len(pose_basis):
        rest = rest + pose_offsets(rotations, pose_basis)
    world, posed = world_transforms(rotations, joints, parents)
    shift = posed - (world @ joints[..., None])[..., 0]  # for vertices at rest, not relative to the joint
    blended = weights @ torch.cat([world, shift[..., None]], -1).flatten(2)  # [B, V, 12]
    blended = blended.unflatten(2, (3, 4))
    return (blended[..., :3] * rest[..., None, :]).sum(-1) + blended[..., 3], posed
