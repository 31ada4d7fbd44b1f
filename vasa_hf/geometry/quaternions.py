"""Rotations as quaternions wxyz: conversion from and to matrices, composition. Pure tensors."""

import torch
import torch.nn.functional as F
from torch import Tensor


def matrix_from_quaternion(
    quats: Tensor,  # [..., 4]
) -> Tensor:
    """Rotation matrices `(..., 3, 3)` of quaternions wxyz of any length; a zero quaternion does not rotate."""
    w, x, y, z = F.normalize(quats, dim=-1).unbind(dim=-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def quaternion_from_matrix(
    rotation: Tensor,  # [..., 3, 3]
) -> Tensor:
    """Unit quaternions wxyz `(..., 4)` of rotation matrices, with finite gradients at every rotation.

    The largest component is computed from the diagonal, the others by division by it.
    """
    m = rotation
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    yz, zx, xy = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    sum_xy, sum_zx, sum_yz = m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 2, 1] + m[..., 1, 2]
    # Row k is 4 q_k q.
    products = torch.stack(
        [
            torch.stack([1 + xx + yy + zz, yz, zx, xy], dim=-1),
            torch.stack([yz, 1 + xx - yy - zz, sum_xy, sum_zx], dim=-1),
            torch.stack([zx, sum_xy, 1 - xx + yy - zz, sum_yz], dim=-1),
            torch.stack([xy, sum_zx, sum_yz, 1 - xx - yy + zz], dim=-1),
        ],
        dim=-2,
    )
    largest = products.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)
    row = products.gather(-2, largest[..., None, None].expand(*largest.shape, 1, 4))[..., 0, :]
    return F.normalize(row, dim=-1)


def quaternion_multiply(
    first: Tensor,  # [..., 4]
    second: Tensor,  # [..., 4]
) -> Tensor:
    """Hamilton product: the rotation `first` after the rotation `second`, `(..., 4)`."""
    aw, ax, ay, az = first.unbind(dim=-1)
    bw, bx, by, bz = second.unbind(dim=-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        dim=-1,
    )
