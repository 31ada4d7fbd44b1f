"""Landmarks of one face that move as those of another. Pure tensors; coordinates as in `geometry/landmarks.py`."""

import torch
from torch import Tensor

from vasa_hf.geometry.landmarks import frontal_points
from vasa_hf.geometry.rotations import euler_from_matrix, matrix_from_euler


def posed_points(
    frontal: Tensor,  # [..., N, 2]
    pose: Tensor,  # [..., 7]
    canonical: Tensor,  # [N, 3]
) -> Tensor:
    """Undo `frontal_points`: points `(..., N, 2)` of a face with a head pose."""
    rotation = matrix_from_euler(pose[..., 0], pose[..., 1], pose[..., 2])
    flat = frontal @ rotation[..., :2, :2].transpose(-1, -2) + canonical[:, 2:] @ rotation[..., None, :2, 2]
    return flat * pose[..., None, 6:7] + pose[..., None, 3:5]


def transfer_landmarks(
    own: Tensor,  # [N, 2]
    own_pose: Tensor,  # [7]
    driving: Tensor,  # [T, N, 2]
    driving_pose: Tensor,  # [T, 7]
    canonical: Tensor,  # [N, 3]
    neutral: int = 0,
) -> tuple[Tensor, Tensor]:
    """Move a face's landmarks by the change of another face since one of its frames.

    Args:
        own (`torch.Tensor` of shape `(points, 2)`): Landmarks of the face.
        own_pose (`torch.Tensor` of shape `(7,)`): Its yaw, pitch, roll, tx, ty, tz, scale.
        driving (`torch.Tensor` of shape `(frames, points, 2)`): Landmarks of the other face.
        driving_pose (`torch.Tensor` of shape `(frames, 7)`): Its poses.
        canonical (`torch.Tensor` of shape `(points, 3)`): Mean face.
        neutral (`int`, defaults to 0): The frame that the change is measured from.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: landmarks `(frames, points, 2)` and poses `(frames, 7)`.
    """
    start, shape = driving_pose[neutral], frontal_points(driving, driving_pose, canonical)
    shape = frontal_points(own, own_pose, canonical) + shape - shape[neutral]
    turns, own_turn = (matrix_from_euler(*pose[..., :3].unbind(-1)) for pose in (driving_pose, own_pose))
    rotation = turns @ turns[neutral].transpose(-1, -2) @ own_turn
    ratio = driving_pose[:, 6:] / start[6:]
    shift = (driving_pose[:, 3:6] - start[3:6]) / start[6:] * own_pose[6:]
    pose = torch.cat([euler_from_matrix(rotation), own_pose[3:6] + shift, own_pose[6:] * ratio], dim=-1)
    return posed_points(shape, pose, canonical), pose
