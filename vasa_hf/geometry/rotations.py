"""Head rotations: conversion between yaw, pitch, roll and 3x3 matrices.

The axes, as the viewer of an image sees them::

        . z (away from the viewer)
       /
      o-----> x (right)          points ~ scale * canonical @ R.T + t
      |
      v y (down)                 R = R_y(yaw) @ R_x(pitch) @ R_z(roll)

Positive yaw turns the face to the image's left, positive pitch looks down, positive roll is clockwise on the screen.
"""

import torch
from torch import Tensor


def matrix_from_euler(yaw_rad: Tensor, pitch_rad: Tensor, roll_rad: Tensor) -> Tensor:
    """Compose rotation matrices.

    Args:
        yaw_rad (`torch.Tensor` of shape `(...)`): Turn about the vertical axis, radians.
        pitch_rad (`torch.Tensor` of shape `(...)`): Nod, radians.
        roll_rad (`torch.Tensor` of shape `(...)`): Tilt in the image plane, radians.

    Returns:
        `torch.Tensor` of shape `(..., 3, 3)`.
    """
    cos_y, sin_y = yaw_rad.cos(), yaw_rad.sin()
    cos_p, sin_p = pitch_rad.cos(), pitch_rad.sin()
    cos_r, sin_r = roll_rad.cos(), roll_rad.sin()
    rows = [
        [cos_y * cos_r + sin_y * sin_p * sin_r, -cos_y * sin_r + sin_y * sin_p * cos_r, sin_y * cos_p],
        [cos_p * sin_r, cos_p * cos_r, -sin_p],
        [-sin_y * cos_r + cos_y * sin_p * sin_r, sin_y * sin_r + cos_y * sin_p * cos_r, cos_y * cos_p],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def euler_from_matrix(rotation: Tensor) -> Tensor:
    """Inverse of `matrix_from_euler`, for pitch within +-90 degrees.

    Args:
        rotation (`torch.Tensor` of shape `(..., 3, 3)`): Rotation matrices.

    Returns:
        `torch.Tensor` of shape `(..., 3)`: yaw, pitch, roll in radians.
    """
    yaw = torch.atan2(rotation[..., 0, 2], rotation[..., 2, 2])
    pitch = torch.atan2(-rotation[..., 1, 2], torch.hypot(rotation[..., 0, 2], rotation[..., 2, 2]))
    roll = torch.atan2(rotation[..., 1, 0], rotation[..., 1, 1])
    return torch.stack([yaw, pitch, roll], -1)
